"""Stopping rules: given the votes so far, go on sampling or stop with a certificate.

A rule is a small pure object over counts. It knows nothing of images, noise or engines, so the same object decides
in a local run, on a cluster, and again in `smx verify`. A verdict depends on the counts at the look where it is given
and on nothing earlier: it can be recomputed from a certificate's line. Adding a rule: a module here and a line in
`_classes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import BadInput


@dataclass(frozen=True)
class Verdict:
    """What the votes prove: `prediction` (-1 abstains), `radius` in [0, 1] pixel units, `p_lower`."""

    prediction: int
    radius: float
    p_lower: float


class Rule(Protocol):
    """Looks at the counts at sample numbers of its own choosing, never in between: so batching changes nothing."""

    @property
    def name(self) -> str:
        """As given to --rule."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """All that `make_rule` needs, besides sigma, n and alpha, to make this rule again; goes into the manifest."""
        ...

    @property
    def largest_radius(self) -> float:
        """The radius that a unanimous vote would give."""
        ...

    @property
    def largest_n(self) -> int:
        """No image takes more estimation samples."""
        ...

    @property
    def looks(self) -> tuple[int, ...]:
        """The sample numbers at which it decides, increasing."""
        ...

    def next_look(self, drawn: int) -> int:
        """The number of estimation samples at which to decide next, given that `drawn` were not enough."""
        ...

    def decide(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> Verdict | None:
        """A verdict, or None to go on to the next look. Counts are per class; `drawn` includes invalid votes."""
        ...

    def can_reach(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> bool:
        """Whether sampling can have gone on until these counts. False: every way to them ends at an earlier look."""
        ...


MOST_SAMPLES = 10**9
"""Of an image: more would take weeks, and counts are limited to as many in files."""
OPTION_OF = {"radius": "radius", "grid": "grid", "anytime": "tolerance"}
"""The option that a rule needs, for those that need one."""
_EXAMPLE = {"radius": 0.5, "grid": 0.25, "tolerance": 0.05}


def _classes() -> dict[str, type]:
    from .anytime import AnytimeRule
    from .fixed import FixedRule
    from .grid import GridRule
    from .radius import RadiusRule
    from .two_class import TwoClassRule

    return {
        "fixed": FixedRule,
        "two-class": TwoClassRule,
        "radius": RadiusRule,
        "grid": GridRule,
        "anytime": AnytimeRule,
    }


def make_rule(name: str, *, sigma: float, n: int, alpha: float, **parameters: Any) -> Rule:
    """The rule called `name`; BadInput for unknown names and parameters out of range.

    Every rule takes `slack` (default 0): what the noise takes off p_lower. A sequential rule tests H0: p <= p0 + slack.
    """
    classes = _classes()
    _check_name(name, classes)
    if not 1e-6 <= sigma <= 1e6:
        raise BadInput(f"--sigma {sigma}: must be a positive number (the noise level in [0, 1] pixel units)")
    if not 1e-100 <= alpha < 0.5:
        raise BadInput(f"--alpha {alpha}: must lie in [1e-100, 0.5), e.g. 0.001")
    if n < 1:
        raise BadInput(f"--n {n}: must be at least 1")
    if n > MOST_SAMPLES:
        raise BadInput(f"--n {n}: must be at most {MOST_SAMPLES}")
    for key, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadInput(f"--rule {name}: {key} is {value!r}, expected a number")
    rule: Rule = classes[name](sigma=sigma, n=n, alpha=alpha, **parameters)
    return rule


def parameters_from_options(rule: str, **options: float | None) -> dict[str, float]:
    """Of `radius`, `grid` and `tolerance`, the one that `rule` needs; BadInput if it is missing or another one is there."""
    _check_name(rule, _classes())
    needed = OPTION_OF.get(rule)
    owner = {option: name for name, option in OPTION_OF.items()}
    for option, value in options.items():
        if value is not None and option != needed:
            raise BadInput(f"--{option} {value:g}: goes with --rule {owner[option]}, not with --rule {rule}")
    if needed is None:
        return {}
    value = options.get(needed)
    if value is None:
        raise BadInput(f"--rule {rule}: needs --{needed}, e.g. --{needed} {_EXAMPLE[needed]}")
    return {needed: float(value)}


def rule_label(name: str, parameters: dict[str, Any]) -> str:
    """For tables: `fixed`, `radius 0.5`, `grid 0.25`."""
    value = parameters.get(OPTION_OF.get(name, ""))
    return name if not isinstance(value, int | float) else f"{name} {value:g}"


def _check_name(name: str, classes: dict[str, type]) -> None:
    if name not in classes:
        raise BadInput(f"--rule {name}: unknown; known rules: {', '.join(classes)}")
