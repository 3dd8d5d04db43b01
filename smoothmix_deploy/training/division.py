"""Who computes which images of a mini-batch: processes side by side, and parts of a process one after the other.

Pure bookkeeping. Gradients and losses are means over images, so with these weights the parts add up to the mini-batch,
whatever the division: it is no hyper-parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Division:
    """The place of one process."""

    rank: int = 0
    world_size: int = 1
    parts: int = 1
    """Of each process (`--accumulate`)."""

    def rows(self, size: int) -> list[slice]:
        """This process's parts as rows of a mini-batch of `size` images, one after the other; sizes differ by one at most.

        A mini-batch with too few images for all parts (the last of an epoch) is not divided: every process computes
        all of it, so that all make the same calls of the network.
        """
        if self._undivided(size):
            return [slice(0, size)]
        first = self.rank * self.parts
        ends = [size * i // (self.world_size * self.parts) for i in range(first, first + self.parts + 1)]
        return [slice(begin, end) for begin, end in pairwise(ends)]

    def weight(self, rows: slice, size: int) -> float:
        """What a part counts in the mean over the mini-batch; over all parts of all processes they add up to 1."""
        return 1 / self.world_size if self._undivided(size) else (rows.stop - rows.start) / size

    def _undivided(self, size: int) -> bool:
        return size < self.world_size * self.parts
