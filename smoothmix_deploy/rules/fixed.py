"""The fixed-sample rule: the protocol of every published table.

Cohen, Rosenfeld, Kolter 2019 (arXiv 1902.02918), algorithm CERTIFY: the class A is the most frequent one of the
selection samples, its probability is bounded from `n` fresh samples, and the certificate abstains unless the bound
exceeds 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..statistics.bounds import ABSTAIN, certified_radius, clopper_pearson_lower, largest_radius
from . import Verdict


@dataclass(frozen=True)
class SingleLook:
    """Decide once, after `n` estimation samples, at error `alpha`. What the rules with one look share."""

    sigma: float
    n: int
    alpha: float
    slack: float = 0.0
    """What the noise takes off p_lower (`statistics.bounds.grid_noise_slack`)."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The noise's slack, where it has one."""
        return {"slack": self.slack} if self.slack else {}

    @property
    def largest_n(self) -> int:
        """`n`."""
        return self.n

    @property
    def looks(self) -> tuple[int, ...]:
        """`n` alone."""
        return (self.n,)

    def next_look(self, drawn: int) -> int:
        """Always `n`."""
        assert drawn < self.n
        return self.n

    def can_reach(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> bool:
        """There is no earlier look."""
        return True


@dataclass(frozen=True)
class FixedRule(SingleLook):
    """One class's bound, and all other classes taken for the runner-up."""

    name: str = "fixed"

    @property
    def largest_radius(self) -> float:
        """`sigma * ppf(alpha^(1/n))`."""
        return largest_radius(self.n, self.alpha, self.sigma, self.slack)

    def decide(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> Verdict:
        """Bound the probability of the selected class. With no valid selection vote at all: abstain."""
        assert drawn == self.n
        if not selection_K.any():
            return Verdict(ABSTAIN, 0.0, 0.0)
        top = int(selection_K.argmax())  # ties: lowest index
        p_lower = clopper_pearson_lower(int(counts_K[top]), drawn, self.alpha, self.slack)
        radius = certified_radius(p_lower, self.sigma)
        return Verdict(top if radius > 0 else ABSTAIN, radius, p_lower)
