"""What the user asked for, checked: a rule that can certify something, and the error it may make."""

from __future__ import annotations

from collections.abc import Callable

from ..artefacts import Artefact
from ..errors import BadInput
from ..noise.source import noise_slack
from ..rules import MOST_SAMPLES, Rule, make_rule
from ..statistics.bounds import fewest_samples

Note = Callable[[str], None]
USUAL_ALPHA = 0.001


def alpha_of_family(alpha_family: float, alpha: float, images: int) -> float:
    """The error of one image so that all `images` certificates hold together with 1 - `alpha_family` (union bound)."""
    if alpha != USUAL_ALPHA:
        raise BadInput(f"--alpha {alpha:g} and --alpha-family {alpha_family:g}: give one of the two")
    if not 0 < alpha_family < 0.5:
        raise BadInput(f"--alpha-family {alpha_family:g}: must lie in (0, 0.5), e.g. 0.001")
    return alpha_family / images


def attainable_rule(rule: str, parameters: dict[str, float], sigma: float, n: int, alpha: float, note: Note) -> Rule:
    """The rule; BadInput if not even a unanimous vote certifies, a note if that certifies next to nothing."""
    made = make_rule(rule, sigma=sigma, n=n, alpha=alpha, **parameters)
    if rule == "radius":  # refuses radii that are out of reach by itself
        return made
    if made.largest_radius <= 0 and rule != "grid":
        least = {"fixed": fewest_samples(alpha), "two-class": fewest_samples(alpha / 2)}.get(rule)
        raise BadInput(
            f"--n {n}: too few samples for --alpha {alpha:g}: even a unanimous vote abstains; "
            f"use {f'at least --n {least}' if least else 'more'} (100000 is usual)"
        )
    if made.largest_radius < 0.1 * sigma:
        note(
            f"warning: --n {n} at --alpha {alpha:g} certifies at most {made.largest_radius / sigma:.3f} sigma: nearly every image will abstain"
        )
    return made


def resolve_sigma(sigma: float | None, artefact: Artefact, note: Note) -> float:
    sigma = artefact.sigma if sigma is None else sigma
    if sigma is None:
        raise BadInput(f"--sigma: missing, and {artefact.path} does not say which noise it was trained for")
    if artefact.sigma is not None and sigma != artefact.sigma:
        note(
            f"warning: --sigma {sigma:g}, but {artefact.path} was trained for {artefact.sigma:g}: certificates will be true, "
            "but fewer or smaller than they could be"
        )
    return float(sigma)


def noise_parameters(noise: str, sigma: float, shape: tuple[int, int, int]) -> dict[str, float]:
    """What the noise adds to the rule's parameters: `slack`, where it takes anything off p_lower."""
    slack = noise_slack(noise, sigma, shape)
    return {"slack": slack} if slack else {}


def make_checked_rule(
    rule: str, parameters: dict[str, float], sigma: float, n: int, n0: int, alpha: float, note: Note
) -> Rule:
    if n0 < 1:
        raise BadInput(f"--n0 {n0}: must be at least 1")
    if n0 > MOST_SAMPLES:
        raise BadInput(f"--n0 {n0}: must be at most {MOST_SAMPLES}")
    return attainable_rule(rule, parameters, sigma, n, alpha, note)
