"""Is this image certified at radius R? An exact group-sequential test: a few hundred samples answer for most images.

The class A comes from the selection samples; then its count is followed until it reaches the upper boundary (certified
at exactly R), falls to the lower one, or `n` samples are used up (not certified: the verdict abstains). Valid for every
p <= Phi(R / sigma) by coupling. The lower boundary only decides when to give up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import BadInput
from ..statistics.bounds import ABSTAIN, largest_radius
from . import Verdict
from .boundaries import Boundaries, Schedule


class BoundaryRule:
    """Follows the selected class's count along the boundaries of one or more radii."""

    sigma: float
    n: int
    alpha: float
    boundaries: Boundaries
    radii: list[float]

    @property
    def largest_n(self) -> int:
        """`n`."""
        return self.n

    @property
    def looks(self) -> tuple[int, ...]:
        """Geometric, ending with `n`."""
        return self.boundaries.looks

    @property
    def largest_radius(self) -> float:
        """The largest radius asked for."""
        return self.radii[-1]

    def next_look(self, drawn: int) -> int:
        """The first look after `drawn` samples."""
        return self.boundaries.next_look(drawn)

    def decide(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> Verdict | None:
        """The largest radius certified, once nothing is open. With no valid selection vote at all: abstain."""
        if not selection_K.any():
            return Verdict(ABSTAIN, 0.0, 0.0)
        top = int(selection_K.argmax())  # ties: lowest index
        count = int(counts_K[top])
        if not self.boundaries.finished(count, drawn):
            return None
        certified = self.boundaries.certified(count, drawn)
        if certified == 0:
            return Verdict(ABSTAIN, 0.0, 0.0)
        return Verdict(top, self.radii[certified - 1], self.boundaries.p0[certified - 1])

    def can_reach(self, selection_K: np.ndarray, counts_K: np.ndarray, drawn: int) -> bool:
        """Without a selected class the first look ends it; else see `Boundaries.can_reach`."""
        if not selection_K.any():
            return drawn == self.looks[0]
        return self.boundaries.can_reach(int(counts_K[int(selection_K.argmax())]), drawn)


@dataclass(frozen=True)
class RadiusRule(BoundaryRule):
    """Certified at `radius`, or not. `radius` 0 asks whether the prediction is the smoothed classifier's at all."""

    sigma: float
    n: int
    alpha: float
    radius: float
    first_look: int = Schedule.first_look
    look_ratio: float = Schedule.look_ratio
    spending: float = Schedule.spending
    futility: float = Schedule.futility
    slack: float = 0.0
    """What the noise takes off p_lower (`statistics.bounds.grid_noise_slack`)."""
    name: str = field(default="radius", init=False)

    def __post_init__(self) -> None:
        self._schedule.check(self.name, self.n)
        if not 0 <= self.radius <= 1e6:
            raise BadInput(f"--radius {self.radius:g}: must be a number >= 0, in [0, 1] pixel units")
        if not self.boundaries.attainable:
            most = largest_radius(self.n, self.alpha, self.sigma)
            raise BadInput(
                f"--radius {self.radius:g}: out of reach of --n {self.n} at --alpha {self.alpha:g} and sigma {self.sigma:g}: "
                f"even a unanimous vote certifies less than {most:.3f}; take a smaller radius or more samples"
            )

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.first_look, self.look_ratio, self.spending, self.futility)

    @property
    def parameters(self) -> dict[str, Any]:
        """The radius and the schedule."""
        return self._schedule.record(self.slack, radius=self.radius)

    @cached_property
    def radii(self) -> list[float]:  # type: ignore[override]
        """The one radius."""
        return [self.radius]

    @cached_property
    def boundaries(self) -> Boundaries:  # type: ignore[override]
        """Computed once; equal arguments are cached across rules as well."""
        return Boundaries(self.radii, self.sigma, self.alpha, self.n, self._schedule, self.slack)
