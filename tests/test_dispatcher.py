"""The dispatcher: whatever arrives late, twice, or never, the lines are those of a run in one process."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from test_scheduler import DoublingRule, K, play, vote

from smoothmix_deploy.certification.dispatcher import PREFETCH, Dispatcher, ItemVotes
from smoothmix_deploy.certification.scheduler import Scheduler
from smoothmix_deploy.certification.worker import WorkQueue
from smoothmix_deploy.rules.fixed import FixedRule

RULES = {"fixed": FixedRule(0.5, 40, 0.001), "doubling": DoublingRule()}


def line(job):
    """All of a certificate that comes from votes."""
    votes = [(t.votes.drawn, t.votes.counts_K.tolist()) for t in (job.selection, job.estimation)]
    return job.index, job.verdict, votes


def sequential(rule, indices, n0=5):
    released, _ = play(Scheduler(indices, rule, n0, K), 7)
    return [line(job) for job in released]


def result(item, seconds=0.01):
    """What a worker makes of an item."""
    counts = []
    for s in item.segments:
        votes = [vote(s.index, s.stream, s.first + i) for i in range(s.count)]
        counts.append({k: votes.count(k) for k in range(K) if k in votes})
    return ItemVotes(item.number, tuple(counts), seconds)


class Machine(RuleBasedStateMachine):
    """Workers ask, deliver in any order, deliver again, die, come back; the driver is stopped and goes on."""

    @initialize(name=st.sampled_from(sorted(RULES)), images=st.integers(1, 12), batch=st.integers(1, 12))
    def begin(self, name, images, batch):
        self.rule, self.indices, self.batch = RULES[name], range(3, 3 + 2 * images, 2), batch
        self.released, self.now = [], 0.0
        self.start({})

    def start(self, partial):
        done = {index for index, *_ in self.released}
        self.scheduler = Scheduler([i for i in self.indices if i not in done], self.rule, 5, K, partial)
        self.dispatcher = Dispatcher(self.scheduler, self.batch)
        self.held = []  # (worker, item) that a worker is busy with
        self.delivered = []

    def release(self):
        self.scheduler.release(lambda job: self.released.append(line(job)))

    @rule(worker=st.integers(0, 4), wait=st.sampled_from([0.0, 0.0, 1.0, 60.0]))
    def request(self, worker, wait):
        self.now += wait
        before = sum(w == worker for w, _ in self.held)
        item = self.dispatcher.request(worker, self.now)
        if item is not None:
            self.held.append((worker, item))
            assert before < PREFETCH + len(self.delivered)  # more only if another one has done what it holds

    @precondition(lambda self: self.held)
    @rule(data=st.data(), seconds=st.sampled_from([1e-6, 0.01, 5.0]))
    def deliver(self, data, seconds):
        worker, item = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        fresh = item.number not in self.delivered
        assert self.dispatcher.deliver(worker, result(item, seconds)) == (item.samples if fresh else 0)
        self.delivered.append(item.number)
        self.release()

    @precondition(lambda self: self.delivered and self.held)
    @rule(data=st.data(), worker=st.integers(0, 4))
    def deliver_again(self, data, worker):
        """A message that came twice: wrong votes show that it is not looked at."""
        number = data.draw(st.sampled_from(self.delivered))
        assert self.dispatcher.deliver(worker, ItemVotes(number, ({0: 1},), 1.0)) == 0

    @rule(worker=st.integers(0, 4))
    def die(self, worker):
        self.held = [(w, item) for w, item in self.held if w != worker]
        self.dispatcher.lost(worker)

    @rule()
    def stop_and_resume(self):
        self.release()
        self.start({image["index"]: image for image in self.scheduler.snapshot()})

    def teardown(self):
        if not hasattr(self, "rule"):
            return
        for worker in {w for w, _ in self.held}:  # the rest is done by one worker that joins late
            self.dispatcher.lost(worker)
        for _ in range(10_000):
            while (item := self.dispatcher.request("late", self.now)) is not None:
                self.dispatcher.deliver("late", result(item))
            self.release()
            if self.dispatcher.finished:
                break
        assert self.released == sequential(self.rule, self.indices)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


def test_items_grow_to_half_a_second_in_whole_batches():
    """A worker of 10,000 samples/s comes to items of 5,000, four times as large at most from one to the next."""
    dispatcher = Dispatcher(Scheduler(range(100), FixedRule(0.5, 10_000, 0.001), 100, K), 64)
    sizes = []
    for _ in range(8):
        item = dispatcher.request("w", 0.0)
        sizes.append(item.samples)
        dispatcher.deliver("w", ItemVotes(item.number, ({},) * len(item.segments), item.samples / 10_000))
    assert sizes == [256, 1024, 4096, 4992, 4992, 4992, 4992, 4992]


def test_overdue_items_get_a_second_worker_and_the_first_result_counts():
    """Only when nothing else is left, only after the patience, and never twice to the same worker."""
    dispatcher = Dispatcher(Scheduler(range(1), FixedRule(0.5, 20, 0.001), 5, K), 32)
    item = dispatcher.request("slow", 0.0)
    assert dispatcher.request("idle", 9.0) is None
    assert dispatcher.request("slow", 11.0) is None
    assert dispatcher.request("idle", 11.0) is item
    assert dispatcher.request("third", 12.0) is None
    assert dispatcher.deliver("idle", result(item)) == 25
    assert dispatcher.deliver("slow", result(item)) == 0
    assert dispatcher.idle


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_a_workers_queue_fills_batches_across_items(rows):
    """Votes go to the item and segment whose samples they are; batches are full while there is work."""
    scheduler = Scheduler(range(4), FixedRule(0.5, 21, 0.001), 5, K)
    dispatcher = Dispatcher(scheduler, 11)
    dispatcher._rows["w"] = 17
    items, found, sizes = [], {}, []
    while (item := dispatcher.request(len(items), 0.0)) is not None:
        items.append(item)
    queue = WorkQueue(lambda votes: found.__setitem__(votes.number, votes.counts))
    for item in (*items, None):
        queue.put(item)
    while segments := queue.next_batch(rows):
        votes = np.full(rows, 2)
        for s in segments:
            votes[s.row : s.row + s.count] = [vote(s.index, s.stream, s.first + i) for i in range(s.count)]
        sizes.append(sum(s.count for s in segments))
        queue.record(segments, votes)
    assert found == {item.number: result(item).counts for item in items}
    assert all(size == rows for size in sizes[:-1])
