"""The dispatcher: whatever arrives late, twice, or never, the lines are those of a run in one process."""

from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from test_scheduler import DoublingRule, K, play, vote

from smoothmix_deploy.certification import queues
from smoothmix_deploy.certification.dispatcher import PREFETCH, Dispatcher, ItemVotes
from smoothmix_deploy.certification.leases import Leases, Report
from smoothmix_deploy.certification.queues import ItemQueue, LeaseQueue
from smoothmix_deploy.certification.scheduler import ImageVotes, Scheduler
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
        self.start({image.index: image for image in self.scheduler.snapshot()})

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


def answer(segments, rows):
    votes = np.full(rows, 2)
    for s in segments:
        votes[s.row : s.row + s.count] = [vote(s.index, s.stream, s.first + i) for i in range(s.count)]
    return votes


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_a_workers_queue_fills_batches_across_items(rows):
    """Votes go to the item and segment whose samples they are; batches are full while there is work."""
    scheduler = Scheduler(range(4), FixedRule(0.5, 21, 0.001), 5, K)
    dispatcher = Dispatcher(scheduler, 11)
    dispatcher._rows["w"] = 17
    items, found, sizes = [], {}, []
    while (item := dispatcher.request(len(items), 0.0)) is not None:
        items.append(item)
    inbox = SimpleQueue()
    queue = ItemQueue(items[0], inbox, lambda votes: found.__setitem__(votes.number, votes.counts))
    for item in (*items[1:], None):
        inbox.put(item)
    while segments := queue.next_batch(rows):
        sizes.append(sum(s.count for s in segments))
        queue.record(segments, answer(segments, rows))
    assert found == {item.number: result(item).counts for item in items}
    assert all(size == rows for size in sizes[:-1])


class Worker:
    """One that certifies what it was leased, batch by batch, when told to."""

    def __init__(self, lease, rows):
        self.inbox, self.rows, self.reports, self.out = SimpleQueue(), rows, [], []
        self.queue = LeaseQueue(lease, self.inbox, self.reports.append)

    def step(self):
        """Hand out a batch while there are less than two, else record one. False: it would wait for more leases."""
        if len(self.out) < 2:
            self.inbox.put(None)  # so that it never waits; taken back below
            segments = self.queue.next_batch(self.rows)
            self.queue._stopped = False
            if segments:
                self.out.append(segments)
                return True
        if not self.out:
            return False
        segments = self.out.pop(0)
        self.queue.record(segments, answer(segments, self.rows))
        return True


class LeaseMachine(RuleBasedStateMachine):
    """Workers ask, work, report late or never, die, come back; the driver is stopped and goes on."""

    @initialize(images=st.integers(1, 12), batch=st.integers(1, 12), every=st.sampled_from([0.0, 1e9]))
    def begin(self, images, batch, every):
        self.usual, queues.REPORT_SECONDS = queues.REPORT_SECONDS, every
        self.indices, self.batch = range(3, 3 + 2 * images, 2), batch
        self.released, self.now = [], 0.0
        self.start({})

    def start(self, partial):
        done = {index for index, *_ in self.released}
        left = [i for i in self.indices if i not in done]
        self.scheduler = Scheduler(left, RULES["doubling"], 5, K, partial)
        self.leases = Leases(self.scheduler, self.batch, len(left), 3)
        self.workers, self.samples = {}, 0

    @rule(name=st.integers(0, 3), wait=st.sampled_from([0.0, 0.0, 1.0, 60.0]))
    def request(self, name, wait):
        self.now += wait
        lease = self.leases.request(name, self.now)
        if lease is None:
            return
        assert len({votes.index for votes in lease.images}) == len(lease.images)
        if name in self.workers:
            self.workers[name].inbox.put(lease)
        else:
            assert lease.question is not None
            self.workers[name] = Worker(lease, self.batch)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), steps=st.integers(1, 12))
    def work(self, data, steps):
        worker = self.workers[data.draw(st.sampled_from(sorted(self.workers)))]
        for _ in range(steps):
            worker.step()

    @precondition(lambda self: any(worker.reports for worker in self.workers.values()))
    @rule(data=st.data(), again=st.booleans())
    def report(self, data, again):
        """The oldest; perhaps a message that comes twice."""
        name = data.draw(st.sampled_from(sorted(n for n, w in self.workers.items() if w.reports)))
        report = self.workers[name].reports.pop(0)
        self.leases.deliver(name, report, self.now)
        if again:
            assert self.leases.deliver(name, report, self.now) == 0
        self.scheduler.release(lambda job: self.released.append(line(job)))

    @rule(name=st.integers(0, 3))
    def die(self, name):
        self.workers.pop(name, None)
        self.leases.lost(name)

    @rule()
    def stop_and_resume(self):
        self.start({votes.index: votes for votes in self.scheduler.snapshot()})

    def teardown(self):
        if not hasattr(self, "workers"):
            return
        for name in range(4):  # the rest is done by one worker that joins late
            self.die(name)
        worker = None
        for _ in range(10_000):
            lease = self.leases.request("late", self.now)
            if lease is not None and worker is None:
                worker = Worker(lease, self.batch)
            elif lease is not None:
                worker.inbox.put(lease)
            while worker is not None and worker.step():
                pass
            while worker is not None and worker.reports:
                self.leases.deliver("late", worker.reports.pop(0), self.now)
            self.scheduler.release(lambda job: self.released.append(line(job)))
            if self.leases.finished:
                break
        queues.REPORT_SECONDS = self.usual
        assert self.released == sequential(RULES["doubling"], self.indices)
        assert self.leases.idle


LeaseMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLeases = LeaseMachine.TestCase


def whole(index, rule=RULES["doubling"]):
    """All votes of an image."""
    return play(Scheduler([index], rule, 5, K), 7)[0][0].votes


def test_leases_follow_a_worker_and_shrink_towards_the_end():
    """What waits grows to a second's worth; of the last images nobody gets more than its share of a half."""
    scheduler = Scheduler(range(1000), RULES["doubling"], 5, K)
    leases = Leases(scheduler, 9, 1000, 2)
    waiting, begun, index = [], 0, 0
    for _ in range(400):
        lease = leases.request("w", 0.0)
        if lease is not None:
            waiting.append(leases._workers["w"].waiting)
        step = min(25, leases._workers["w"].waiting)  # 100 images a second, reported every quarter
        begun += step
        decided = tuple(whole(i) for i in range(index, index + step))
        leases.deliver("w", Report(decided, (), begun, 0.25), 0.0)
        index += step
        scheduler.release(lambda job: None)
        if leases.finished:
            break
    assert leases.finished
    assert waiting[:6] == [4, 16, 64, 100, 100, 100]
    assert waiting[-5:] == [1, 1, 1, 1, 1]
    assert sorted(waiting[6:], reverse=True) == waiting[6:]


def test_images_of_a_silent_worker_are_leased_again_and_the_first_verdict_counts():
    """Only to one that has nothing, only after the patience; its report later is no news."""
    scheduler = Scheduler(range(1), RULES["doubling"], 5, K)
    leases = Leases(scheduler, 4, 1, 2)
    lease = leases.request("slow", 0.0)
    assert leases.request("idle", 9.0) is None
    assert leases.request("slow", 11.0) is None
    assert leases.request("idle", 11.0).images == lease.images
    assert leases.request("third", 12.0) is None
    votes = whole(0)
    assert leases.deliver("idle", Report((votes,), (), 1, 1.0), 12.0) == votes.selected + votes.drawn
    assert leases.deliver("slow", Report((votes,), (), 1, 1.0), 12.0) == 0
    assert leases.idle


def test_what_a_dead_worker_reported_is_not_sampled_again():
    """Its images are leased with the votes that it had counted."""
    leases = Leases(Scheduler(range(2), RULES["doubling"], 5, K), 4, 2, 1)
    first = leases.request("w", 0.0)
    some = ImageVotes(0, 5, {0: 3, 1: 2}, 3, {1: 2, 2: 1}, 0.5)
    assert leases.deliver("w", Report((), (some,), 1, 1.0), 1.0) == 8
    leases.lost("w")
    assert [votes.index for votes in first.images] == [0]
    assert leases.request("x", 2.0).images == (some,)
