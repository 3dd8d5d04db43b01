"""As large a radius as the votes prove, until more samples are not worth it.

The lower end of a confidence sequence holds at all times together, so sampling may stop whenever it likes: here when the
radius can grow by no more than `tolerance`, going by the sequence's upper end and by what a unanimous rest up to `n`
would prove. The verdict takes the sequence at the look where it stops, not the running maximum over earlier looks,
which would be as sound: it must follow from the counts in the certificate.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy import special

from ..errors import BadInput
from ..statistics.bounds import ABSTAIN, certified_radius
from ..statistics.confidence_sequence import confidence_interval
from ..statistics.sequential import geometric_looks
from . import Verdict
from .boundaries import Schedule

_SCAN = 64
"""`can_reach` tries all counts of an earlier look if there are no more than these."""
_MOST_KNOWN = 1 << 18


@dataclass(frozen=True)
class AnytimeRule:
    """Radius within `tolerance` of what more samples could prove; `n` is the most an image takes."""

    sigma: float
    n: int
    alpha: float
    tolerance: float
    first_look: int = Schedule.first_look
    look_ratio: float = Schedule.look_ratio
    slack: float = 0.0
    """What the noise takes off p_lower (`statistics.bounds.grid_noise_slack`)."""
    name: str = field(default="anytime", init=False)

    def __post_init__(self) -> None:
        Schedule(self.first_look, self.look_ratio).check(self.name, self.n)
        if not 0 < self.tolerance <= 1e6:
            raise BadInput(f"--tolerance {self.tolerance:g}: must be a positive number, in [0, 1] pixel units")

    @property
    def parameters(self) -> dict[str, Any]:
        """The tolerance and the looks."""
        slack = {"slack": self.slack} if self.slack else {}
        return {"tolerance": self.tolerance, "first_look": self.first_look, "look_ratio": self.look_ratio, **slack}

    @property
    def largest_n(self) -> int:
        """`n`."""
        return self.n

    @property
    def largest_radius(self) -> float:
        """The confidence sequence's lower end after `n` votes for one class."""
        return certified_radius(self._lower(self.n, self.n), self.sigma)

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Geometric, ending with `n`."""
        return geometric_looks(self.first_look, self.look_ratio, self.n)

    def next_look(self, drawn: int) -> int:
        """The first look after `drawn` samples."""
        return self.looks[bisect_right(self.looks, drawn)]

    def decide(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> Verdict | None:
        """The radius that the sequence's lower end proves. With no valid selection vote at all: abstain."""
        if not selection_K.any():
            return Verdict(ABSTAIN, 0.0, 0.0)
        top = int(selection_K.argmax())  # ties: lowest index
        count = int(counts_K[top])
        if not self._finished(count, drawn):
            return None
        p_lower = self._lower(count, drawn)
        radius = certified_radius(p_lower, self.sigma)
        return Verdict(top if radius > 0 else ABSTAIN, radius, p_lower)

    def can_reach(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> bool:
        """Whether at each earlier look a count that can lead to these is unfinished, as far as few tries tell."""
        if not selection_K.any():
            return drawn == self.looks[0]
        count = int(counts_K[int(selection_K.argmax())])
        for look in self.looks[: self.looks.index(drawn)]:
            counts = range(max(0, count - (drawn - look)), min(count, look) + 1)
            if len(counts) <= _SCAN and all(self._finished(one, look) for one in counts):
                return False
        return True

    def _lower(self, count: int, drawn: int) -> float:
        return max(0.0, confidence_interval(count, drawn, self.alpha)[0] - self.slack)

    @cached_property
    def _known(self) -> dict[tuple[int, int], bool]:
        return {}

    def _finished(self, count: int, drawn: int) -> bool:
        known = self._known.get((count, drawn))
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[count, drawn] = drawn == self.n or self._would_stop(count, drawn)
        return known

    def _would_stop(self, count: int, drawn: int) -> bool:
        lower, upper = confidence_interval(count, drawn, self.alpha)
        best = confidence_interval(count + self.n - drawn, self.n, self.alpha)[0]  # if all further votes are for it
        highest = min(upper, best)
        if highest <= 0.5:
            return True  # nothing will be certified
        return self.sigma * float(special.ndtri(highest) - special.ndtri(lower)) <= self.tolerance
