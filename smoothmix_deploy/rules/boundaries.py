"""Boundaries of several radii on one path of counts: what the rules `radius` and `grid` share.

Radius r is certified when the count reaches the upper boundary of `p0 = Phi(r / sigma)`, and given up when it falls to
the lower one. The boundaries are nested (made so, if rounding to whole counts left them crossing), so a count that
certifies r certifies every smaller radius, and one path answers for all radii without a correction: a false certificate
at any radius needs a false one at the smallest radius that is not true, which has probability alpha at most.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import BadInput
from ..statistics.sequential import geometric_looks, lower_boundary, probability_above, upper_boundary

MOST_SAMPLES = 10**7


@dataclass(frozen=True)
class Schedule:
    """When to look, and how to spend the errors over the looks. Any values are sound; these decide what it costs."""

    first_look: int = 8
    look_ratio: float = 1.1
    spending: float = 30.0
    """Samples at which spending turns from linear to logarithmic (`statistics.sequential.spent_by`)."""
    futility: float = 0.01
    """Chance to give up a radius that is just true."""
    kept: float = 0.0
    """Share of the errors that only the last look may spend."""

    def check(self, rule: str, n: int) -> None:
        """BadInput unless boundaries can be computed in reasonable time."""
        if n > MOST_SAMPLES:
            raise BadInput(f"--n {n}: --rule {rule} takes at most {MOST_SAMPLES:,} samples an image")
        if not isinstance(self.first_look, int) or not 1 <= self.first_look <= MOST_SAMPLES:
            raise BadInput(f"--rule {rule}: first_look {self.first_look} must be a whole number from 1")
        if not 0 <= self.kept < 1:
            raise BadInput(f"--rule {rule}: kept {self.kept} must be in [0, 1)")
        if not 1.01 <= self.look_ratio <= 100 or not 1e-3 <= self.spending <= 1e9 or not 1e-100 <= self.futility < 0.5:
            raise BadInput(
                f"--rule {rule}: impossible look_ratio {self.look_ratio}, spending {self.spending} or futility {self.futility}"
            )

    def looks(self, n: int) -> tuple[int, ...]:
        """Sample numbers of the looks, the last one `n`."""
        return geometric_looks(self.first_look, self.look_ratio, n)

    def record(self, slack: float, **parameters: Any) -> dict[str, Any]:
        """For the manifest: a rule's parameters with these, and the noise's slack, where it has one."""
        return {
            **({"slack": slack} if slack else {}),
            **parameters,
            "first_look": self.first_look,
            "look_ratio": self.look_ratio,
            "spending": self.spending,
            "futility": self.futility,
            **({"kept": self.kept} if self.kept else {}),
        }


class Boundaries:
    """Upper and lower boundaries of radii 0 <= r_0 < r_1 < ... at all looks."""

    def __init__(
        self, radii: Sequence[float], sigma: float, alpha: float, n: int, schedule: Schedule, slack: float = 0.0
    ) -> None:
        self.looks = schedule.looks(n)
        self.p0 = [probability_above(r, sigma) for r in radii]
        # Samples may come from a distribution that gives the class up to `slack` more than the theorem's noise does.
        tested = [min(p + slack, math.nextafter(1.0, 0.0)) for p in self.p0]
        upper = [upper_boundary(p, alpha, self.looks, schedule.spending, schedule.kept) for p in tested]
        lower = [lower_boundary(p, schedule.futility, self.looks, schedule.spending, schedule.kept) for p in tested]
        # Raising an upper boundary only makes it harder to cross; lowering a lower one only makes it harder to give up.
        self.upper_RL = np.maximum.accumulate(np.array(upper, np.int64), axis=0)
        self.lower_RL = np.minimum.accumulate(np.array(lower, np.int64)[::-1], axis=0)[::-1]

    @cached_property
    def attainable(self) -> int:
        """How many of the radii a unanimous vote would certify."""
        return int((self.upper_RL <= np.array(self.looks)).any(axis=1).sum())

    def certified(self, count: int, drawn: int) -> int:
        """How many of the radii `count` of `drawn` votes certify."""
        return int(np.searchsorted(self.upper_RL[:, self._at(drawn)], count, side="right"))

    def finished(self, count: int, drawn: int) -> bool:
        """Whether every radius is certified or given up, or the samples are used up."""
        number, at = self.certified(count, drawn), self._at(drawn)
        return number == len(self.p0) or count <= self.lower_RL[number, at] or drawn == self.looks[-1]

    def can_reach(self, count: int, drawn: int) -> bool:
        """Whether at every earlier look some count, of those that can lead to this one, is unfinished."""
        before = self._at(drawn)
        if before == 0:
            return True
        t = np.array(self.looks[:before])
        least, most = np.maximum(0, count - (drawn - t)), np.minimum(count, t)
        # Unfinished are the counts strictly between the two boundaries of some radius.
        open_RL = np.maximum(least, self.lower_RL[:, :before] + 1) <= np.minimum(most, self.upper_RL[:, :before] - 1)
        return bool(open_RL.any(axis=0).all())

    def next_look(self, drawn: int) -> int:
        """The first look after `drawn` samples."""
        return self.looks[bisect_right(self.looks, drawn)]

    def _at(self, drawn: int) -> int:
        at = bisect_right(self.looks, drawn) - 1
        assert self.looks[at] == drawn, "rules decide at their looks only"
        return at
