"""Exact binomial bounds and the radii they prove.

Pure functions of counts. This file knows nothing about images, engines or files; it is meant to be reviewed on
its own. Source of the theorem and the protocol: Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via
Randomized Smoothing", ICML 2019 (arXiv 1902.02918), Theorem 1 and section 3.2. Bounds: Clopper and Pearson 1934.
"""

from __future__ import annotations

import math

from scipy import special

ABSTAIN = -1
"""The prediction of an abstention."""


def clopper_pearson_lower(successes: int, trials: int, alpha: float, slack: float = 0.0) -> float:
    """One-sided lower confidence bound on a binomial proportion: P[p < bound] <= alpha for every true p.

    The bound is the p at which seeing `successes` or more of `trials` has probability alpha, less a part in 10^12: more
    than the rounding of the inverse beta function here and of the normal quantile later, so both are on the safe side.

    `slack`: the samples may come from a distribution that gives the event up to that much more probability than the
    one the bound is for (see `grid_noise_slack`); the bound is lowered by it, not below 0. A sequential test of
    H0: p <= p0 allows for it by testing p <= p0 + slack.
    """
    _check(successes, trials, alpha)
    if not 0 <= slack < 1:
        raise ValueError(f"slack must lie in [0, 1), got {slack}")
    if successes == 0:
        return 0.0
    bound = float(special.betaincinv(successes, trials - successes + 1, alpha)) * (1 - 1e-12)
    return max(0.0, bound - slack) if slack else bound


def grid_noise_slack(values: int, thresholds: int) -> float:
    """Total variation between drawn and exact grid noise on `values` pixels (Voracek and Hein 2023, section 4).

    An exact pixel is the number of exact thresholds below a real uniform u; the drawn one compares floor(2^64 u) with
    integers. They differ only if u lies between a threshold and its integer: each of the `thresholds` is off by at most
    2^-65 (1 + 2^-40), and the ones left out on either side, nested tails, have at most that mass together. So a pixel
    differs with probability <= (thresholds + 2) 2^-65 (1 + 2^-40) < (thresholds + 2) 2^-64. One more 2^-64 is for
    samples with too few words (noise/grid.py). No event's probability differs by more; rounded up.
    """
    return math.nextafter((values * (thresholds + 2) + 1) * 2.0**-64, 1.0)


def clopper_pearson_upper(successes: int, trials: int, alpha: float, slack: float = 0.0) -> float:
    """One-sided upper confidence bound on a binomial proportion: P[p > bound] <= alpha for every true p.

    Raised by `slack`, not above 1, where the lower bound is lowered by it.
    """
    _check(successes, trials, alpha)
    return 1.0 - clopper_pearson_lower(trials - successes, trials, alpha, slack)


def certified_radius(p_lower: float, sigma: float) -> float:
    """L2 radius `sigma * ppf(p_lower)` in [0, 1] pixel units; 0 where `p_lower` <= 1/2 (Cohen et al., eq. 3)."""
    return sigma * float(special.ndtri(p_lower)) if p_lower > 0.5 else 0.0


def largest_radius(n: int, alpha: float, sigma: float, slack: float = 0.0) -> float:
    """The radius when all of `n` samples vote for the class: nothing larger can come out. 0: always abstains."""
    return certified_radius(clopper_pearson_lower(n, n, alpha, slack), sigma)


def two_class_bounds(
    successes: int, runner_up: int, trials: int, alpha: float, slack: float = 0.0
) -> tuple[float, float]:
    """(lower bound for the class, upper bound for the runner-up), both true with probability >= 1 - alpha.

    Each at `alpha / 2`; the runner-up has at most what the class leaves.
    """
    p_lower = clopper_pearson_lower(successes, trials, alpha / 2, slack)
    return p_lower, min(clopper_pearson_upper(runner_up, trials, alpha / 2, slack), 1.0 - p_lower)


def two_class_radius(p_lower: float, q_upper: float, sigma: float) -> float:
    """L2 radius `sigma / 2 * (ppf(p_lower) - ppf(q_upper))` (Cohen et al., eq. 3); 0 where the bounds overlap."""
    return sigma / 2 * float(special.ndtri(p_lower) - special.ndtri(q_upper)) if p_lower > q_upper else 0.0


def fewest_samples(alpha: float) -> int:
    """The smallest n at which a unanimous vote certifies anything, i.e. alpha^(1/n) > 1/2."""
    n = max(1, math.ceil(math.log2(1 / alpha)))
    while largest_radius(n, alpha, 1.0) <= 0:
        n += 1
    return n


def top_two_p_value(first: int, second: int) -> float:
    """Two-sided binomial test of the top two counts at 1/2 (Cohen et al., PREDICT; Hung and Fithian 2019)."""
    from scipy import stats  # half a second that `smx verify` does without

    return float(stats.binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0


def outvoted_p_value(rival: int, claimed: int) -> float:
    """One-sided exact test of H0: the claimed class is at least as probable as the rival, from their votes.

    Given how many votes the two share, the rival's are binomial with p <= 1/2 under H0. The rival must have been chosen
    without these votes. Never below 1e-300, where floats end.
    """
    from scipy import stats

    p_value = stats.binomtest(rival, rival + claimed, 0.5, "greater").pvalue if rival + claimed else 1.0
    return max(float(p_value), 1e-300)


def _check(successes: int, trials: int, alpha: float) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"counts must satisfy 0 <= successes <= trials, got {successes} of {trials}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
