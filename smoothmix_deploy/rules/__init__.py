"""Stopping rules: given the votes so far, go on sampling or stop with a certificate.

A rule is a small pure object over counts. It knows nothing of images, noise or engines, so the same object decides
in a local run, on a cluster, and again in `smx verify`. Adding one: a module here and a line in `RULES`.
"""

from __future__ import annotations

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
    def largest_radius(self) -> float:
        """The radius that a unanimous vote would give."""
        ...

    @property
    def largest_n(self) -> int:
        """No image takes more estimation samples."""
        ...

    def next_look(self, drawn: int) -> int:
        """The number of estimation samples at which to decide next, given that `drawn` were not enough."""
        ...

    def decide(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> Verdict | None:
        """A verdict, or None to go on to the next look. Counts are per class; `drawn` includes invalid votes."""
        ...


def make_rule(name: str, *, sigma: float, n: int, alpha: float, **parameters: Any) -> Rule:
    """The rule called `name`; BadInput for unknown names and parameters out of range.

    Every rule takes `slack` (default 0): what the noise takes off p_lower. A sequential rule tests H0: p <= p0 + slack.
    """
    from .fixed import FixedRule

    rules = {"fixed": FixedRule}
    if name not in rules:
        raise BadInput(f"--rule {name}: unknown; known rules: {', '.join(rules)}")
    if not 1e-6 <= sigma <= 1e6:
        raise BadInput(f"--sigma {sigma}: must be a positive number (the noise level in [0, 1] pixel units)")
    if not 1e-100 <= alpha < 0.5:
        raise BadInput(f"--alpha {alpha}: must lie in [1e-100, 0.5), e.g. 0.001")
    if n < 1:
        raise BadInput(f"--n {n}: must be at least 1")
    return rules[name](sigma=sigma, n=n, alpha=alpha, **parameters)
