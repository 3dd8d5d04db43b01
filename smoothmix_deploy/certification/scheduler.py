"""Which samples of which images go into the next batch, and what their votes add up to.

Continuous batching: every batch is filled with whatever samples are still wanted, across images, so no image waits for
another and no batch runs half empty before the end. Verdicts depend only on an image's own votes at the rule's looks,
never on how samples were grouped. Pure bookkeeping: knows nothing of noise, engines, files, time, or whether workers
are threads or other machines (`dispatcher`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from ..noise.gaussian import Stream
from ..rules import Rule, Verdict


@dataclass(frozen=True)
class Votes:
    """The votes of samples 0 .. `drawn` - 1. Replaced as a whole, so that an interruption never sees half of it."""

    drawn: int
    counts_K: np.ndarray

    @property
    def counts(self) -> dict[int, int]:
        """{class: votes} of those that have any."""
        return {int(k): int(self.counts_K[k]) for k in np.flatnonzero(self.counts_K)}


@dataclass(frozen=True)
class ImageVotes:
    """All votes of one image so far, to be kept or sent: samples of each stream, and {class: votes} of the valid ones."""

    index: int
    selected: int
    selection: Mapping[int, int]
    drawn: int
    counts: Mapping[int, int]
    seconds: float


@dataclass
class Tally:
    """One stream of one image: samples up to `target` are wanted, up to `scheduled` handed out, `votes` counted."""

    votes: Votes
    target: int
    scheduled: int = 0
    early: dict[int, tuple[int, Mapping[int, int]]] = field(default_factory=dict)
    """First sample -> samples and their counts, of those that came before their predecessors: not yet in `votes`."""

    @property
    def complete(self) -> bool:
        """Whether all wanted samples have voted."""
        return self.votes.drawn == self.target


@dataclass
class ImageJob:
    """One image on its way to a certificate."""

    index: int
    selection: Tally
    estimation: Tally
    verdict: Verdict | None = None
    seconds: float = 0.0

    @property
    def wanted(self) -> bool:
        """Whether there are samples to hand out."""
        left = [tally.target - tally.scheduled for tally in (self.selection, self.estimation)]
        return self.verdict is None and max(left) > 0

    def tally(self, stream: Stream) -> Tally:
        """The tally of `stream`."""
        return self.selection if stream is Stream.SELECTION else self.estimation

    @property
    def votes(self) -> ImageVotes:
        """What was counted so far."""
        selection, estimation = self.selection.votes, self.estimation.votes
        return ImageVotes(
            self.index, selection.drawn, selection.counts, estimation.drawn, estimation.counts, self.seconds
        )


@dataclass(frozen=True)
class Segment:
    """`count` consecutive samples of image `index`'s stream, from number `first`, in rows `row` .. of a batch."""

    index: int
    stream: Stream
    first: int
    count: int
    row: int


@dataclass
class Scheduler:
    """Admits `indices` in order, hands out segments, adds up votes, releases finished jobs in that same order."""

    indices: Iterable[int]
    rule: Rule
    n0: int
    num_classes: int
    partial: dict[int, ImageVotes] = field(default_factory=dict)
    """Votes counted by an interrupted run: see `snapshot`."""
    speculate: bool = False
    """Fill rows that would stay empty with samples beyond the next look; those that a verdict makes needless are not
    counted. Changes no verdict and no certificate: only how soon the answer for a few images comes."""

    def __post_init__(self) -> None:
        self._waiting: Iterator[int] = iter(self.indices)
        self._jobs: dict[int, ImageJob] = {}  # by image; admitted, not yet released; dataset order
        self._ready: list[int] = []  # heap of images with samples to hand out: earlier ones first
        self._all_admitted = False

    def next_batch(self, rows: int) -> list[Segment]:
        """Segments for at most `rows` rows; fewer only when no image is left to admit. Empty: nothing to run now."""
        segments: list[Segment] = []
        row = 0
        while row < rows and (job := self.next_job()) is not None:
            for stream in (Stream.SELECTION, Stream.ESTIMATION):
                tally = job.tally(stream)
                count = min(tally.target - tally.scheduled, rows - row)
                if count > 0:
                    segments.append(Segment(job.index, stream, tally.scheduled, count, row))
                    tally.scheduled += count
                    row += count
            if job.wanted:
                heappush(self._ready, job.index)
        return segments + self._ahead(row, rows) if self.speculate and segments else segments

    def _ahead(self, row: int, rows: int) -> list[Segment]:
        """Segments beyond the looks for rows `row` .. `rows` - 1, shared out evenly."""
        segments = []
        jobs = [job for job in self._jobs.values() if job.verdict is None]
        for waiting, job in zip(range(len(jobs), 0, -1), jobs, strict=True):
            tally = job.estimation
            count = min(-(-(rows - row) // waiting), self.rule.largest_n - tally.scheduled)
            # the selection's last votes must be recorded before a look can be decided
            if count > 0 and job.selection.scheduled == job.selection.target:
                segments.append(Segment(job.index, Stream.ESTIMATION, tally.scheduled, count, row))
                tally.scheduled += count
                row += count
        return segments

    def record(self, segments: list[Segment], votes_B: np.ndarray, seconds: float = 0.0) -> None:
        """Add the votes of a batch (int [B]; negative: no vote). Batches must be recorded in the order handed out."""
        used = sum(segment.count for segment in segments)
        for segment in segments:
            job = self._jobs.get(segment.index)
            if job is None or job.verdict is not None:  # drawn ahead, and not needed
                continue
            job.seconds += seconds * segment.count / used
            first = job.tally(segment.stream).votes.drawn
            assert segment.first == first, "batches recorded out of order"
            self._add(job, segment.stream, votes_B[segment.row : segment.row + segment.count])

    def record_counts(self, segment: Segment, counts: Mapping[int, int], seconds: float = 0.0) -> None:
        """Add the votes {class: votes} of one segment, in any order. Each segment once, and none drawn ahead."""
        job = self._jobs[segment.index]
        assert job.verdict is None, "a segment recorded twice"
        job.seconds += seconds
        tally = job.tally(segment.stream)
        assert segment.first >= tally.votes.drawn, "a segment recorded twice"
        tally.early[segment.first] = segment.count, counts
        while early := tally.early.pop(tally.votes.drawn, None):
            counts_K = tally.votes.counts_K.copy()
            for k, votes in early[1].items():
                counts_K[k] += votes
            tally.votes = Votes(tally.votes.drawn + early[0], counts_K)
        self._decide(job)

    def record_image(self, votes: ImageVotes, decided: bool) -> int:
        """Take over what somebody else counted of a whole image (`next_job`), and how many of its samples are news.

        `decided`: the rule stops there. Votes that are older than those known, or of a released image, are no news."""
        job = self._jobs.get(votes.index)
        known = 0 if job is None else job.selection.votes.drawn + job.estimation.votes.drawn
        news = votes.selected + votes.drawn - known
        if job is None or job.verdict is not None or news < 0:
            return 0
        self._set(job, votes)
        if decided:
            job.verdict = self.rule.decide(
                job.selection.votes.counts_K, job.estimation.votes.counts_K, job.estimation.votes.drawn
            )
        return news

    def admit_more(self, partial: Iterable[ImageVotes]) -> None:
        """`indices` yields more images than it did, with these votes."""
        self.partial |= {votes.index: votes for votes in partial}
        self._all_admitted = False

    def withdraw_decided(self) -> list[ImageJob]:
        """Take out the jobs that have a verdict, in any order: in place of `release`."""
        decided = [job for job in self._jobs.values() if job.verdict is not None]
        for job in decided:
            del self._jobs[job.index]
        return decided

    def _add(self, job: ImageJob, stream: Stream, classes: np.ndarray) -> None:
        """Count votes up to the next look, decide, go on with the rest until there is a verdict."""
        tally = job.tally(stream)
        while len(classes) and job.verdict is None:
            count = tally.target - tally.votes.drawn
            assert count > 0, "votes beyond a look that cannot be decided"
            now, classes = classes[:count], classes[count:]
            added_K = np.bincount(now[now >= 0], minlength=self.num_classes)
            tally.votes = Votes(tally.votes.drawn + len(now), tally.votes.counts_K + added_K)
            self._decide(job)

    def release(self, write: Callable[[ImageJob], None]) -> int:
        """Hand finished jobs to `write`, in dataset order; how many. A job is released only once `write` returned."""
        released = 0
        while (job := next(iter(self._jobs.values()), None)) is not None and job.verdict is not None:
            write(job)
            del self._jobs[job.index]
            released += 1
        return released

    @property
    def finished(self) -> bool:
        """Whether every image has been released. Known once `next_batch` found nothing more to admit."""
        return self._all_admitted and not self._jobs

    @property
    def decided(self) -> int:
        """How many jobs have a verdict but wait for an earlier image."""
        return sum(job.verdict is not None for job in self._jobs.values())

    def share_done(self, mean_samples: float | None = None) -> float:
        """How many images' worth of work the unreleased jobs have behind them.

        An image is expected to take `mean_samples` (both streams; None: up to its next look), or what it has if more.
        """
        return sum(self._share(job, mean_samples) for job in self._jobs.values())

    @staticmethod
    def _share(job: ImageJob, mean_samples: float | None) -> float:
        drawn = job.selection.votes.drawn + job.estimation.votes.drawn
        wanted = job.selection.target + job.estimation.target
        return 1.0 if job.verdict is not None else drawn / max(wanted, mean_samples or 0.0)

    def snapshot(self) -> list[ImageVotes]:
        """The votes of all unreleased jobs: what a resumed run need not sample again."""
        return [job.votes for job in self._jobs.values()]

    def next_job(self) -> ImageJob | None:
        """The first image with samples to hand out, admitted if need be; the caller's until it is recorded or left."""
        while not self._ready and not self._all_admitted:
            index = next(self._waiting, None)
            self._all_admitted = index is None
            if index is not None:
                self._admit(index)
        return self._jobs[heappop(self._ready)] if self._ready else None

    def _admit(self, index: int) -> None:
        none = Votes(0, np.zeros(self.num_classes, np.int64))
        job = self._jobs[index] = ImageJob(index, Tally(none, self.n0), Tally(none, self.rule.next_look(0)))
        known = self.partial.pop(index, None)
        if known:
            self._set(job, known)
            self._decide(job)
        if job.wanted and not self._ready:
            heappush(self._ready, index)

    def _set(self, job: ImageJob, known: ImageVotes) -> None:
        job.seconds = known.seconds
        for stream, drawn, counts in (
            (Stream.SELECTION, known.selected, known.selection),
            (Stream.ESTIMATION, known.drawn, known.counts),
        ):
            counts_K = np.zeros(self.num_classes, np.int64)
            counts_K[list(counts)] = list(counts.values())
            tally = job.tally(stream)
            tally.votes, tally.scheduled = Votes(drawn, counts_K), drawn
        while job.estimation.votes.drawn > job.estimation.target:  # looks that were passed
            job.estimation.target = self.rule.next_look(job.estimation.target)

    def _decide(self, job: ImageJob) -> None:
        selection, estimation = job.selection, job.estimation
        if job.verdict is None and selection.complete and estimation.complete:
            votes = estimation.votes
            job.verdict = self.rule.decide(selection.votes.counts_K, votes.counts_K, votes.drawn)
            if job.verdict is None:
                estimation.target = self.rule.next_look(votes.drawn)
                if job.wanted:
                    heappush(self._ready, job.index)
