"""Which worker has which images, for rules with many looks: workers decide by themselves when an image has enough samples.

A lease is some images, each with the votes that it has already. Its worker certifies them as a run of its own would and
reports now and then: what is decided, what is counted, what waits. Noise is keyed and the rule is one of counts, so an
image may be leased to anybody, more than once; the first to decide counts, and the driver decides again by the same
counts. Leases grow until what waits lasts a worker about a second, and shrink as the images run out. Pure: the caller
says what time it is. Knows nothing of processes, networks, engines or noise (`driver`, `worker`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ..rules import Rule
from .dispatcher import FIRST_BATCHES, ITEM_SECONDS, PATIENCE, TIMES_SLOWEST
from .scheduler import ImageVotes, Scheduler

_MOST_WAITING = 1 << 14
_SHORTEST = 0.1
"""Seconds: a worker begins many images at once, so over less than this its rate says nothing."""


@dataclass(frozen=True)
class Question:
    """What is asked of every image."""

    rule: Rule
    n0: int
    num_classes: int


@dataclass(frozen=True)
class Lease:
    """Images to certify, with their votes so far. `question`: in all until its worker has reported."""

    images: tuple[ImageVotes, ...]
    question: Question | None


@dataclass(frozen=True)
class Report:
    """What is new since a worker's last report: images decided, others in progress; and how many it has begun so far."""

    decided: tuple[ImageVotes, ...]
    in_progress: tuple[ImageVotes, ...]
    begun: int
    seconds: float
    """Since the last report, or since there was work."""


@dataclass
class _Worker:
    """What the driver knows of one."""

    images: dict[int, None]
    """Leased, not decided; in the order of leasing."""
    since: float
    """When it last said something, or was given something having had nothing."""
    leased: int = 0
    begun: int = 0
    ahead: int = 0
    """How many images should wait there; 0: not known yet."""
    has_question: bool = False

    @property
    def waiting(self) -> int:
        """Leased, and not begun as far as is known."""
        return self.leased - self.begun


class Leases:
    """Hands a scheduler's images to workers, by name. As `dispatcher.Dispatcher`, with leases for items."""

    def __init__(self, scheduler: Scheduler, batch_size: int, images: int, workers: int) -> None:
        """`images`: how many the scheduler has, at most; they are spread evenly over `workers`."""
        self._scheduler, self._sharing = scheduler, workers
        self._question = Question(scheduler.rule, scheduler.n0, scheduler.num_classes)
        self._first = -(-FIRST_BATCHES * batch_size // (scheduler.n0 + scheduler.rule.next_look(0)))
        self._left = images
        self._workers: dict[Hashable, _Worker] = {}
        self._votes: dict[int, ImageVotes] = {}  # of leased images: the most that is known
        self._holders: dict[int, set[Hashable]] = {}  # of leased images
        self._orphans: list[int] = []  # leased once, held by nobody; the last one is next
        self._slowest = 0.0

    def request(self, worker: Hashable, now: float) -> Lease | None:
        """Images for `worker`. None: nothing to do for it now (it may ask again)."""
        state = self._workers.setdefault(worker, _Worker({}, now))
        images = self._take(self._enough(state) - state.waiting) or self._overdue(worker, now)
        if not images:
            return None
        if not state.images:
            state.since = now
        for image in images:
            self._holders.setdefault(image.index, set()).add(worker)
            self._votes[image.index] = image
            state.images[image.index] = None
        state.leased += len(images)
        return Lease(tuple(images), None if state.has_question else self._question)

    def deliver(self, worker: Hashable, report: Report, now: float) -> int:
        """Take over what `worker` counted; how many samples are news."""
        state = self._workers.get(worker)
        samples = 0
        for decided, images in ((True, report.decided), (False, report.in_progress)):
            for votes in images:
                news = self._scheduler.record_image(votes, decided)
                samples += news
                if decided:
                    self._done(votes.index)
                elif news and votes.index in self._votes:
                    self._votes[votes.index] = votes
        if state is not None:
            self._resize(state, report)
            self._slowest = max(self._slowest, now - state.since)
            state.since, state.has_question = now, True
        return samples

    def lost(self, worker: Hashable) -> None:
        """`worker` is gone: what only it had is leased again, in order."""
        state = self._workers.pop(worker, None)
        for index in state.images if state is not None else ():
            holders = self._holders[index]
            holders.remove(worker)
            if not holders:
                self._orphans.append(index)
        self._orphans.sort(reverse=True)

    def has_enough(self, worker: Hashable) -> bool:
        """Whether enough images wait at `worker`."""
        state = self._workers.get(worker)
        return state is not None and state.waiting >= self._enough(state)

    @property
    def idle(self) -> bool:
        """Whether nothing is out."""
        return not self._holders

    @property
    def finished(self) -> bool:
        """Whether every image has been released."""
        return self._scheduler.finished

    def _enough(self, state: _Worker) -> int:
        """No more than its share of half of what is left: so that all come to their end together."""
        share = (self._left + len(self._orphans)) // (2 * self._sharing)
        return max(1, min(state.ahead or self._first, share))

    def _take(self, most: int) -> list[ImageVotes]:
        """Images that nobody has."""
        images: list[ImageVotes] = []
        while len(images) < most and self._orphans:
            images.append(self._votes[self._orphans.pop()])
        while len(images) < most and (job := self._scheduler.next_job()) is not None:
            images.append(job.votes)
            self._left -= 1
        return images

    def _overdue(self, worker: Hashable, now: float) -> list[ImageVotes]:
        """What one has that has been silent for too long, if `worker` has nothing."""
        if self._workers[worker].images:
            return []
        limit = now - max(PATIENCE, TIMES_SLOWEST * self._slowest)
        for other in self._workers.values():
            if other.since < limit:
                images = [self._votes[index] for index in other.images if worker not in self._holders[index]]
                if images:
                    other.since = now
                    return images
        return []

    def _done(self, index: int) -> None:
        for holder in self._holders.pop(index, ()):
            del self._workers[holder].images[index]
        if self._votes.pop(index, None) is not None and index in self._orphans:
            self._orphans.remove(index)

    def _resize(self, state: _Worker, report: Report) -> None:
        """Towards two items' time of images that wait, at most four times as many at once."""
        begun = report.begun - state.begun
        state.begun = report.begun
        if begun > 0:
            wanted = round(begun * 2 * ITEM_SECONDS / max(report.seconds, _SHORTEST))
            state.ahead = max(self._first, min(wanted, 4 * (state.ahead or self._first), _MOST_WAITING))
