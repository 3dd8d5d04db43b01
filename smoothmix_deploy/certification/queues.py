"""Between a worker's inbox and its sampler: to the sampler each of these is a scheduler.

`ItemQueue` draws samples that the driver has chosen (`dispatcher`), `LeaseQueue` certifies images that it was given
(`leases`). Both keep batches full from one message to the next while there is work. Know nothing of engines or files.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np

from .dispatcher import ItemVotes, WorkItem
from .leases import Lease, Report
from .scheduler import ImageVotes, Scheduler, Segment

Work = WorkItem | Lease
Inbox = SimpleQueue[Work | None]
"""None: stop once what is there is done."""
REPORT_SECONDS = 0.25


@dataclass
class _Task:
    """An item in progress."""

    item: WorkItem
    left: int
    begun: float
    counts: list[dict[int, int]] = field(default_factory=list)


class ItemQueue:
    """Items in, their votes out."""

    def __init__(self, first: WorkItem, inbox: Inbox, deliver: Callable[[ItemVotes], None]) -> None:
        self._inbox, self._deliver = inbox, deliver
        self._pieces: deque[tuple[_Task, int, Segment]] = deque()  # not yet in a batch: task, position in it, samples
        self._batches: deque[list[tuple[_Task, int]]] = deque()  # who owns the segments of batches not yet recorded
        self._delivered = 0.0
        self._stopped = False
        self._begin(first)

    def next_batch(self, rows: int) -> list[Segment]:
        """As the scheduler's. Waits for work only if the sampler has nothing to do. Empty and none out: the end."""
        segments: list[Segment] = []
        owners: list[tuple[_Task, int]] = []
        row = 0
        while row < rows and (self._pieces or self._take(wait=not (segments or self._batches))):
            task, position, piece = self._pieces.popleft()
            count = min(piece.count, rows - row)
            segments.append(Segment(piece.index, piece.stream, piece.first, count, row))
            owners.append((task, position))
            row += count
            if count < piece.count:
                rest = Segment(piece.index, piece.stream, piece.first + count, piece.count - count, 0)
                self._pieces.appendleft((task, position, rest))
        if segments:
            self._batches.append(owners)
        return segments

    def record(self, segments: list[Segment], votes_B: np.ndarray, seconds: float = 0.0) -> None:
        """Count the votes of the oldest batch that is out; deliver items that are complete."""
        for (task, position), segment in zip(self._batches.popleft(), segments, strict=True):
            vote_R = votes_B[segment.row : segment.row + segment.count]
            counts = task.counts[position]
            for k, votes in zip(*np.unique(vote_R[vote_R >= 0], return_counts=True), strict=True):
                counts[int(k)] = counts.get(int(k), 0) + int(votes)
            task.left -= segment.count
            if task.left == 0:
                now = time.perf_counter()
                begun = max(task.begun, self._delivered)
                self._delivered = now
                self._deliver(ItemVotes(task.item.number, tuple(task.counts), now - begun))

    def _take(self, *, wait: bool) -> bool:
        """Put the next item's segments among the pieces; False if there is none."""
        if self._stopped:
            return False
        try:
            item = self._inbox.get(block=wait)
        except Empty:
            return False
        if item is None:
            self._stopped = True
            return False
        assert isinstance(item, WorkItem)
        self._begin(item)
        return True

    def _begin(self, item: WorkItem) -> None:
        task = _Task(item, item.samples, time.perf_counter(), [{} for _ in item.segments])
        self._pieces.extend((task, position, segment) for position, segment in enumerate(item.segments))


class LeaseQueue:
    """Images in, reports out: every quarter of a second, and before the worker would have nothing to begin."""

    def __init__(self, first: Lease, inbox: Inbox, deliver: Callable[[Report], None]) -> None:
        assert first.question is not None
        self._inbox, self._deliver = inbox, deliver
        self._images = _Images()
        asked = first.question
        self._scheduler = Scheduler(self._images, asked.rule, asked.n0, asked.num_classes)
        self._decided: list[ImageVotes] = []
        self._told: dict[int, int] = {}  # samples of images in progress that were reported
        self._begun = 0  # by the last report
        self._reported = time.perf_counter()
        self._out = 0  # batches not yet recorded
        self._stopped = False
        self._add(first)

    def next_batch(self, rows: int) -> list[Segment]:
        """As the scheduler's. Waits for images only if the sampler has nothing to do. Empty and none out: the end."""
        while self._take(wait=False):
            pass
        while not (segments := self._scheduler.next_batch(rows)) and not self._out:
            self._report()
            if not self._take(wait=True):
                break
        self._out += bool(segments)
        return segments

    def record(self, segments: list[Segment], votes_B: np.ndarray, seconds: float = 0.0) -> None:
        """Count the votes of the oldest batch that is out; report now and then."""
        self._out -= 1
        self._scheduler.record(segments, votes_B, seconds)
        self._decided += [job.votes for job in self._scheduler.withdraw_decided()]
        last_begun = not self._images.waiting and self._images.begun > self._begun
        if last_begun or time.perf_counter() - self._reported > REPORT_SECONDS:
            self._report()

    def _report(self) -> None:
        """What is new, if anything is."""
        in_progress = [
            votes for votes in self._scheduler.snapshot() if _samples(votes) > self._told.get(votes.index, 0)
        ]
        if not self._decided and not in_progress and self._images.begun == self._begun:
            return
        now = time.perf_counter()
        self._begun = self._images.begun
        self._deliver(Report(tuple(self._decided), tuple(in_progress), self._begun, now - self._reported))
        for votes in self._decided:
            self._told.pop(votes.index, None)
        self._told |= {votes.index: _samples(votes) for votes in in_progress}
        self._decided, self._reported = [], now

    def _take(self, *, wait: bool) -> bool:
        """The next lease, if there is one."""
        if self._stopped:
            return False
        try:
            lease = self._inbox.get(block=wait)
        except Empty:
            return False
        if lease is None:
            self._stopped = True
            return False
        assert isinstance(lease, Lease)
        if wait:
            self._reported = time.perf_counter()  # the time without work is not the images'
        self._add(lease)
        return True

    def _add(self, lease: Lease) -> None:
        self._images.waiting += [votes.index for votes in lease.images]
        self._scheduler.admit_more(lease.images)


class _Images:
    """Iterates over the images that wait; may go on after its end."""

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self.begun = 0

    def __iter__(self) -> _Images:
        return self

    def __next__(self) -> int:
        if not self.waiting:
            raise StopIteration
        self.begun += 1
        return self.waiting.popleft()


def _samples(votes: ImageVotes) -> int:
    return votes.selected + votes.drawn
