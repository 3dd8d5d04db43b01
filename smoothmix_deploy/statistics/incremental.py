"""A changed classifier's certificate from an earlier one of the original: bounded disagreement.

Ugare, Suresh, Banerjee, Singh, Misailovic, "Incremental Randomized Smoothing Certification", ICLR 2024 (arXiv
2305.19521), Theorem 2. f was certified, f' is its changed form, A the class chosen from f's selection samples. Under
the noise, P[f' = A] >= P[f = A] - P[f = A and f' != A]: a bound on each term gives one on P[f' = A].

Errors, for one image. f's bound fails with probability <= alpha1 (the earlier file's), the bound on the disagreement
<= alpha2, a certificate from fresh samples of f' <= alpha3. If none of the three fails then both certificates are true,
whichever is written down: so one may choose after looking at all votes, and the draws may be the same ones (the union
bound asks for no independence). alpha1 + alpha2 + alpha3 = alpha. Choosing by the votes with alpha for each way would
not be sound: an image would have two chances to err.

Pure functions of counts, like `bounds.py`.
"""

from __future__ import annotations

from .bounds import certified_radius, clopper_pearson_lower, clopper_pearson_upper

TOLERANCE = 0.25
"""Reuse may lose this share of the radius that fresh samples promise; beyond it, sample."""


def remaining_alphas(alpha: float, alpha_old: float) -> tuple[float, float]:
    """(alpha2 of the disagreement, alpha3 of fresh samples): halves of what the earlier file leaves of `alpha`."""
    if not 0 < alpha_old < alpha:
        raise ValueError(f"alpha must exceed the earlier file's {alpha_old}, got {alpha}")
    return (alpha - alpha_old) / 2, (alpha - alpha_old) / 2


def reused_lower(
    successes: int, trials: int, alpha_old: float, disagreements: int, replayed: int, alpha: float, slack: float = 0.0
) -> float:
    """Lower bound on P[f' = A], not below 0: f's bound less Clopper and Pearson's upper bound on the disagreement.

    `successes` of `trials` samples of f were A; in `disagreements` of `replayed` f was A and f' was not. Wrong with
    probability <= alpha_old + `alpha`. `slack` is taken off once: the inequality holds under the distribution that was
    drawn from, and P[f' = A] alone is carried over to the exact one.
    """
    p_lower = clopper_pearson_lower(successes, trials, alpha_old, slack)
    return max(0.0, p_lower - clopper_pearson_upper(disagreements, replayed, alpha))


def promised_radius(
    successes: int, replayed: int, trials: int, alpha: float, sigma: float, slack: float = 0.0
) -> float:
    """The radius after `trials` samples at `alpha` if votes go on as in the first `replayed`. A forecast, no bound."""
    return certified_radius(clopper_pearson_lower(successes * trials // replayed, trials, alpha, slack), sigma)


def worth_sampling(reused_radius: float, promised: float) -> bool:
    """Whether fresh samples promise so much more than reuse that they are worth their cost."""
    return reused_radius < (1 - TOLERANCE) * promised
