"""The usual table, certified accuracy at r = 0, STEP, 2 STEP, ..., with the samples that its cells need.

The certificate's radius is the largest on the grid that is certified: `radius` 0 with a prediction says that the
smoothed classifier's answer is right at the image itself (p > 1/2). An image is finished when its cell is: every radius
certified or given up. The grid ends at the largest radius that a unanimous vote of `n` certifies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from ..errors import BadInput
from ..statistics.bounds import fewest_samples, largest_radius
from .boundaries import Boundaries, Schedule
from .radius import BoundaryRule

MOST_RADII = 500


@dataclass(frozen=True)
class GridRule(BoundaryRule):
    """The largest multiple of `grid` that is certified."""

    sigma: float
    n: int
    alpha: float
    grid: float
    first_look: int = Schedule.first_look
    look_ratio: float = Schedule.look_ratio
    spending: float = 1e5
    """Later than for one radius: most samples go to images near a cell's edge, and those need what is kept for the end."""
    futility: float = Schedule.futility
    kept: float = 0.5
    slack: float = 0.0
    """What the noise takes off p_lower (`statistics.bounds.grid_noise_slack`)."""
    name: str = field(default="grid", init=False)

    def __post_init__(self) -> None:
        self._schedule.check(self.name, self.n)
        if not 0 < self.grid <= 1e6:
            raise BadInput(f"--grid {self.grid:g}: must be a positive number, e.g. 0.25")
        if largest_radius(self.n, self.alpha, self.sigma) / self.grid > MOST_RADII:
            raise BadInput(
                f"--grid {self.grid:g}: more than {MOST_RADII} radii; take a larger step, or --rule anytime or fixed"
            )
        if not self.boundaries.attainable:
            raise BadInput(
                f"--n {self.n}: too few samples for --rule grid at --alpha {self.alpha:g}: even a unanimous vote "
                f"abstains; use at least --n {fewest_samples(self.alpha) + 1}"
            )

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.first_look, self.look_ratio, self.spending, self.futility, self.kept)

    @property
    def parameters(self) -> dict[str, Any]:
        """The step and the schedule."""
        return self._schedule.record(self.slack, grid=self.grid)

    @cached_property
    def radii(self) -> list[float]:  # type: ignore[override]
        """0, STEP, 2 STEP, ... as far as attainable, each the number that its decimal stands for (0.3, not 3 * 0.1)."""
        step = Decimal(repr(self.grid))
        most = largest_radius(self.n, self.alpha, self.sigma)
        radii = [0.0]
        while float(step * len(radii)) < most:
            radii.append(float(step * len(radii)))
        return radii[: max(1, Boundaries(radii, self.sigma, self.alpha, self.n, self._schedule, self.slack).attainable)]

    @cached_property
    def boundaries(self) -> Boundaries:  # type: ignore[override]
        """Computed once; equal arguments are cached across rules as well."""
        return Boundaries(self.radii, self.sigma, self.alpha, self.n, self._schedule, self.slack)
