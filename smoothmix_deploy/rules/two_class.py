"""The same samples as `fixed`, with a bound of its own for the runner-up: other classes no longer count against A.

Cohen et al. 2019, Theorem 1 in full; that the runner-up may be read off the same counts: Voracek 2024 (arXiv
2406.17830), appendix B, as the true runner-up is one fixed class and the bound is monotone in its count. It can certify
with a probability below 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..statistics.bounds import ABSTAIN, largest_radius, two_class_bounds, two_class_radius
from . import Verdict
from .fixed import SingleLook


@dataclass(frozen=True)
class TwoClassRule(SingleLook):
    """Half of `alpha` for the class's lower bound, half for the runner-up's upper bound.

    Never below the fixed rule at `alpha / 2`, on every image. Against the fixed rule at `alpha` it gains where several
    classes share the other votes, and loses up to 0.03 sigma where one class, or none, has them all.
    """

    name: str = "two-class"

    @property
    def largest_radius(self) -> float:
        """`sigma * ppf((alpha / 2)^(1/n))`."""
        return largest_radius(self.n, self.alpha / 2, self.sigma, self.slack)

    def decide(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> Verdict:
        """`sigma / 2 * (ppf(p) - ppf(q))`. Votes for no class count as the runner-up's: against A."""
        assert drawn == self.n
        if not selection_K.any():
            return Verdict(ABSTAIN, 0.0, 0.0)
        top = int(selection_K.argmax())  # ties: lowest index
        invalid = drawn - int(counts_K.sum())
        runner_up = int(np.delete(counts_K, top).max(initial=0)) + invalid
        p_lower, q_upper = two_class_bounds(int(counts_K[top]), runner_up, drawn, self.alpha, self.slack)
        radius = two_class_radius(p_lower, q_upper, self.sigma)
        return Verdict(top if radius > 0 else ABSTAIN, radius, p_lower)
