"""The scheduler: every wanted sample once, batches full, verdicts in order, whatever the batch size."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothmix_deploy.certification.scheduler import Scheduler
from smoothmix_deploy.noise.gaussian import Stream
from smoothmix_deploy.rules import Verdict
from smoothmix_deploy.rules.fixed import FixedRule

K = 3


def vote(index, stream, sample):
    """A vote that is a function of its address, with some invalid ones."""
    value = hash((index, int(stream), sample)) % 7
    return -1 if value == 6 else value % K


def play(scheduler, rows, *, batches=None):
    """Run a scheduler with pretended votes; (released jobs, sizes of batches)."""
    released, sizes = [], []
    while batches is None or len(sizes) < batches:
        segments = scheduler.next_batch(rows)
        if not segments:
            break
        votes = np.full(rows, 2)  # rows that no segment names must not be counted
        for s in segments:
            votes[s.row : s.row + s.count] = [vote(s.index, s.stream, s.first + i) for i in range(s.count)]
        used = sorted((s.row, s.row + s.count) for s in segments)
        assert used[0][0] == 0
        assert all(a[1] == b[0] for a, b in pairwise(used))  # no gap, no overlap
        sizes.append(used[-1][1])
        scheduler.record(segments, votes)
        scheduler.release(released.append)
    return released, sizes


def expected(index, stream, count):
    votes = [vote(index, stream, i) for i in range(count)]
    return np.bincount([v for v in votes if v >= 0], minlength=K).tolist()


@given(images=st.integers(1, 12), n0=st.integers(1, 20), n=st.integers(1, 60), rows=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_fixed_rule(images, n0, n, rows):
    """All samples counted once, in data-set order, every batch but the last full."""
    indices = range(5, 5 + 3 * images, 3)
    released, sizes = play(Scheduler(indices, FixedRule(0.5, n, 0.001), n0, K), rows)
    assert [job.index for job in released] == list(indices)
    for job in released:
        assert job.selection.votes.counts_K.tolist() == expected(job.index, Stream.SELECTION, n0)
        assert job.estimation.votes.counts_K.tolist() == expected(job.index, Stream.ESTIMATION, n)
    assert all(size == rows for size in sizes[:-1])
    assert sum(sizes) == images * (n0 + n)


@dataclass(frozen=True)
class DoublingRule:
    """Looks at 4, 8, 16, ... samples; stops when class 0 leads by 3, or at 64. Stands for sequential rules."""

    name = "doubling"
    largest_radius = 1.0
    largest_n = 64

    def next_look(self, drawn):
        return max(4, 2 * drawn)

    def decide(self, selection_K, counts_K, drawn):
        assert drawn in (4, 8, 16, 32, 64)
        lead = counts_K[0] - counts_K[1:].max()
        return Verdict(0, float(drawn), 0.5) if lead >= 3 or drawn == 64 else None


@given(rows=st.integers(1, 100), stop_after=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_sequential_rule_and_resumption(rows, stop_after):
    """Where an image stops depends on its own votes alone: not on the batch size, nor on being interrupted."""
    indices = range(9)
    plain = {
        job.index: (job.verdict, job.estimation.votes.drawn)
        for job in play(Scheduler(indices, DoublingRule(), 2, K), 1)[0]
    }
    assert len({drawn for _, drawn in plain.values()}) > 1
    first = Scheduler(indices, DoublingRule(), 2, K)
    released, _ = play(first, rows, batches=stop_after)
    rest = [i for i in indices if i not in {job.index for job in released}]
    partial = {image.index: image for image in first.snapshot()}
    resumed = Scheduler(rest, DoublingRule(), 2, K, partial)
    more, _ = play(resumed, rows)
    resumed.release(more.append)
    found = {job.index: (job.verdict, job.estimation.votes.drawn) for job in (*released, *more)}
    assert found == plain


def test_interrupted_run_repeats_no_sample():
    """What a snapshot holds is not sampled again."""
    rule = FixedRule(0.5, 50, 0.001)
    first = Scheduler(range(4), rule, 10, K)
    released, sizes = play(first, 16, batches=6)
    partial = {image.index: image for image in first.snapshot()}
    rest = [i for i in range(4) if i not in {job.index for job in released}]
    _, more = play(Scheduler(rest, rule, 10, K, partial), 16)
    assert sum(sizes) + sum(more) == 4 * 60


def test_batches_out_of_order_are_refused():
    """An invariant of the caller, so an assertion."""
    scheduler = Scheduler(range(2), FixedRule(0.5, 20, 0.001), 5, K)
    _, second = scheduler.next_batch(8), scheduler.next_batch(8)
    with pytest.raises(AssertionError, match="out of order"):
        scheduler.record(second, np.zeros(8, int))


def test_failing_to_write_keeps_the_job():
    """A certificate that could not be written is not forgotten."""
    scheduler = Scheduler([7], FixedRule(0.5, 4, 0.001), 4, K)
    segments = scheduler.next_batch(8)
    scheduler.record(segments, np.zeros(8, int))

    def fail(job):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        scheduler.release(fail)
    assert [image.index for image in scheduler.snapshot()] == [7]
    assert scheduler.release(lambda job: None) == 1


def test_fixed_rule_by_hand():
    """Algorithm CERTIFY: class from the selection, bound from the estimation; ties to the lowest class."""
    rule = FixedRule(0.5, 1000, 0.001)
    verdict = rule.decide(np.array([50, 50, 0]), np.array([990, 5, 5]), 1000)
    assert verdict.prediction == 0
    assert 0.97 < verdict.p_lower < 0.98
    assert verdict.radius == pytest.approx(0.5 * 2.0, abs=0.06)
    assert (
        rule.decide(np.array([0, 60, 40]), np.array([990, 5, 5]), 1000).prediction == -1
    )  # selected class has 5 votes
    assert rule.decide(np.zeros(3, int), np.array([1000, 0, 0]), 1000) == Verdict(-1, 0.0, 0.0)
    assert rule.decide(np.array([100, 0, 0]), np.array([500, 0, 0]), 1000).prediction == -1  # 500 invalid votes
