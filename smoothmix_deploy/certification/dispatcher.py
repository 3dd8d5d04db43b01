"""Which worker samples what: work out, counts back, nothing lost or counted twice, whoever dies on the way.

An item is some samples of some images. Its votes are additive and its noise is keyed, so it may be done by anybody, more
than once, in any order; the first result counts. Items grow until one takes a worker about half a second. Pure: the
caller says what time it is. Knows nothing of processes, networks, engines or noise (`driver`, `worker`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from .scheduler import Scheduler, Segment

PREFETCH = 2
"""Items a worker has at a time: it never waits for the driver."""
ITEM_SECONDS = 0.5
_MOST_ROWS = 1 << 20
FIRST_BATCHES = 4
PATIENCE = 10.0
"""Seconds. An item that is out for so long, and for several times what the slowest took, is given to a second worker
once there is nothing else to hand out."""
TIMES_SLOWEST = 4.0


@dataclass(frozen=True)
class WorkItem:
    """The samples of its segments; their rows are numbered through the item."""

    number: int
    segments: tuple[Segment, ...]

    @property
    def samples(self) -> int:
        """In all segments."""
        return sum(segment.count for segment in self.segments)


@dataclass(frozen=True)
class ItemVotes:
    """What became of an item: per segment {class: votes} (no vote: in none), and the seconds it took."""

    number: int
    counts: tuple[dict[int, int], ...]
    seconds: float


@dataclass
class _Out:
    """An item that is not done."""

    item: WorkItem
    since: float
    holders: set[Hashable] = field(default_factory=set)


class Dispatcher:
    """Hands a scheduler's samples to workers, by name. Memory: the items that are out."""

    def __init__(self, scheduler: Scheduler, batch_size: int) -> None:
        """`batch_size`: items are whole batches, as far as there is work."""
        self._scheduler, self._batch = scheduler, batch_size
        self._out: dict[int, _Out] = {}  # by number; the one handed out longest ago first
        self._held: dict[Hashable, set[int]] = {}
        self._orphans: list[int] = []  # numbers of items that nobody holds
        self._rows: dict[Hashable, int] = {}
        self._slowest = 0.0
        self._numbers = 0

    def request(self, worker: Hashable, now: float) -> WorkItem | None:
        """The next item for `worker`. None: nothing to do for it now (it may ask again)."""
        if self.has_enough(worker):
            return None
        if self._orphans:
            return self._hand_out(self._out[self._orphans.pop()].item, worker, now)
        segments = self._scheduler.next_batch(self._rows.get(worker, FIRST_BATCHES * self._batch))
        if segments:
            self._numbers += 1
            return self._hand_out(WorkItem(self._numbers, tuple(segments)), worker, now)
        overdue = now - max(PATIENCE, TIMES_SLOWEST * self._slowest)
        for out in self._out.values():
            if out.since >= overdue:
                return None
            if worker not in out.holders:
                return self._hand_out(out.item, worker, now)
        return None

    def deliver(self, worker: Hashable, votes: ItemVotes, now: float = 0.0) -> int:
        """Count an item's votes; the number of samples, 0 for an item that was done before. The time is not needed."""
        out = self._out.pop(votes.number, None)
        if out is None:
            return 0
        for holder in out.holders:
            self._held[holder].discard(votes.number)
        if not out.holders:
            self._orphans.remove(votes.number)
        assert len(votes.counts) == len(out.item.segments)
        samples = out.item.samples
        for segment, counts in zip(out.item.segments, votes.counts, strict=True):
            self._scheduler.record_counts(segment, counts, votes.seconds * segment.count / samples)
        self._slowest = max(self._slowest, votes.seconds)
        self._resize(worker, samples, votes.seconds)
        return samples

    def lost(self, worker: Hashable) -> None:
        """`worker` is gone: what only it had is handed out again, oldest first."""
        self._rows.pop(worker, None)
        for number in self._held.pop(worker, set()):
            holders = self._out[number].holders
            holders.remove(worker)
            if not holders:
                self._orphans.append(number)
        self._orphans.sort(reverse=True)

    def has_enough(self, worker: Hashable) -> bool:
        """Whether `worker` has as many items as it may."""
        return len(self._held.get(worker, ())) >= PREFETCH

    @property
    def idle(self) -> bool:
        """Whether nothing is out."""
        return not self._out

    @property
    def finished(self) -> bool:
        """Whether every image has been released."""
        return self._scheduler.finished

    def _hand_out(self, item: WorkItem, worker: Hashable, now: float) -> WorkItem:
        out = self._out.pop(item.number, None) or _Out(item, now)
        out.since = now
        out.holders.add(worker)
        self._out[item.number] = out
        self._held.setdefault(worker, set()).add(item.number)
        return item

    def _resize(self, worker: Hashable, samples: int, seconds: float) -> None:
        """Towards items of ITEM_SECONDS, at most four times as large at once; whole batches."""
        wanted = min(samples * ITEM_SECONDS / max(seconds, 1e-6), 4 * self._rows.get(worker, samples), _MOST_ROWS)
        self._rows[worker] = max(1, round(wanted / self._batch)) * self._batch
