"""One worker: opens the artefact and the data itself, tests the engine, then turns work items into votes.

The same code whether a process (`local_workers`) or a Ray actor (`ray_workers`) carries it. The sampler runs without a
break from item to item, so batches stay full while there is work. Knows nothing about rules, images' verdicts or files.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ..artefacts import open_artefact
from ..data import ImageSet, load_data
from ..engines import Engine, EngineInfo
from ..errors import SmxError
from ..messages import first_line
from .dispatcher import ItemVotes, WorkItem
from .opening import open_tested
from .sampler import run
from .scheduler import Segment


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs to know. Paths must mean the same on its machine."""

    artefact: str
    engine: str | None
    batch_size: int | None
    device: str
    threads: int | None
    data: str
    data_root: str | None
    split: str
    indices: range
    sigma: float
    key: str
    noise: str
    may_halve: bool
    """The batch on lack of memory: no manifest states its size yet."""


@dataclass(frozen=True)
class Greeting:
    """What a worker opened: the driver compares it with the manifest."""

    host: str
    info: EngineInfo
    self_test: dict[str, Any]
    data_digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A worker that cannot go on, with the exit code that its error has."""

    exit_code: int
    text: str


@dataclass(frozen=True)
class OpenWorker:
    """An engine that passed its self-test, and the images."""

    spec: WorkerSpec
    engine: Engine
    images: ImageSet
    greeting: Greeting

    def sample(self, queue: WorkQueue) -> None:
        """Work until the queue is stopped. Stopped if the engine fails."""
        run(
            self.engine, self.images, queue, sigma=self.spec.sigma, key=self.spec.key, noise=self.spec.noise,
            after_batch=lambda samples: None,
        )  # fmt: skip


def open_worker(spec: WorkerSpec) -> OpenWorker:
    """Load and test. Raises as `certify` does."""
    notes: list[str] = []
    artefact = open_artefact(spec.artefact)
    images = load_data(spec.data, root=spec.data_root, split=spec.split)
    engine, tested = open_tested(
        artefact, images, spec.indices, engine=spec.engine, batch_size=spec.batch_size, device=spec.device,
        threads=spec.threads, sigma=spec.sigma, key=spec.key, noise=spec.noise, may_halve=spec.may_halve,
        note=notes.append,
    )  # fmt: skip
    greeting = Greeting(socket.gethostname(), engine.info, tested.record(), images.digest(), tuple(notes))
    return OpenWorker(spec, engine, images, greeting)


def failure(error: Exception) -> Failure:
    """What to tell the driver."""
    if isinstance(error, SmxError):
        return Failure(error.exit_code, str(error))
    return Failure(1, f"unexpected {type(error).__name__}: {first_line(error)}")


@dataclass
class _Task:
    """An item in progress."""

    item: WorkItem
    left: int
    begun: float
    counts: list[dict[int, int]] = field(default_factory=list)


class WorkQueue:
    """Items in, their votes out; to the sampler it is a scheduler. `put` may be called from another thread."""

    def __init__(self, deliver: Callable[[ItemVotes], None]) -> None:
        self._deliver = deliver
        self._items: SimpleQueue[WorkItem | None] = SimpleQueue()
        self._pieces: deque[tuple[_Task, int, Segment]] = deque()  # not yet in a batch: task, position in it, samples
        self._batches: deque[list[tuple[_Task, int]]] = deque()  # who owns the segments of batches not yet recorded
        self._delivered = 0.0
        self._stopped = False

    def put(self, item: WorkItem | None) -> None:
        """More work; None: stop once what is there is done."""
        self._items.put(item)

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
            item = self._items.get(block=wait)
        except Empty:
            return False
        if item is None:
            self._stopped = True
            return False
        task = _Task(item, item.samples, time.perf_counter(), [{} for _ in item.segments])
        self._pieces.extend((task, position, segment) for position, segment in enumerate(item.segments))
        return True
