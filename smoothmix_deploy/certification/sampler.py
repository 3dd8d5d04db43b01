"""The Monte Carlo loop: noise into fixed-shape batches, batches through the engine, votes to the scheduler.

Worker threads each take a buffer of a few batches, fill it with noisy images, run it and count its votes; nobody waits
for anybody but at the end. As many of them run the engine at a time as it has workers; while one does, another makes
noise. Memory is a few buffers and the images in flight, whatever n and the size of the data set. Knows nothing about
files.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Semaphore
from typing import Protocol

import numpy as np

from ..data import ImageSet
from ..engines import Engine, concurrent_calls, on_device, votes
from ..noise.source import make_noise
from .opening import stops_where_engine_fails
from .scheduler import Segment


class WorkSource(Protocol):
    """A scheduler, or what stands for one in a worker."""

    def next_batch(self, rows: int) -> list[Segment]:
        """Samples for at most `rows` rows; empty: none now, and, when all batches are recorded, none any more."""
        ...

    def record(self, segments: list[Segment], votes_B: np.ndarray, seconds: float = 0.0) -> None:
        """The votes of a batch; in the order in which batches were handed out."""
        ...


class BatchFiller:
    """Writes noisy images for segments into a batch buffer."""

    def __init__(self, images: ImageSet, sigma: float, key: str, noise: str = "gaussian") -> None:
        self._images, self._noise = images, make_noise(noise, key, sigma, images.shape)
        self._cached: tuple[int, np.ndarray] | None = None

    def fill(self, batch_BCHW: np.ndarray, segments: list[Segment]) -> None:
        """Fill the rows that the segments name; other rows keep what they held (their votes are not counted)."""
        flat = batch_BCHW.reshape(len(batch_BCHW), -1)
        for segment in segments:
            rows = flat[segment.row : segment.row + segment.count]
            index = segment.index
            self._noise.fill(rows, self._image(index), segment.stream, index, segment.first)

    def _image(self, index: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != index:
            self._cached = index, self._images.image(index).reshape(-1)
        return self._cached[1]


@dataclass
class EngineTime:
    """How long the engine was at work, added up over calls that ran at the same time."""

    seconds: float = 0.0
    calls: int = 1
    """At a time."""

    def share(self, wall_seconds: float) -> float | None:
        """Of the raw engine's rate: the part of the time in which it worked. None: not known, as on a GPU."""
        return self.seconds / (self.calls * wall_seconds) if self.seconds and wall_seconds > 0 else None


def run(
    engine: Engine,
    images: ImageSet,
    scheduler: WorkSource,
    *,
    sigma: float,
    key: str,
    noise: str = "gaussian",
    after_batch: Callable[[int], None],
    compiled: bool | None = None,
    engine_time: EngineTime | None = None,
) -> None:
    """Sample until the scheduler has nothing left. `after_batch(samples)` is called after each recorded buffer.

    On a GPU, noise is made there: `compiled` False spares a short run the compiler's seconds.

    Buffers hold several batches where batches are small: engines like batches that fit their caches, threads like to be
    left alone for some milliseconds.
    """
    device = on_device(engine)
    if device is not None and device.device.type == "cuda":
        from .device_sampler import run_on_device

        run_on_device(
            device, images, scheduler, sigma=sigma, key=key, noise=noise, after_batch=after_batch, compiled=compiled
        )
        return
    workers = _Workers(engine, images, sigma, key, noise, engine_time or EngineTime())
    in_flight: deque[tuple[list[Segment], Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(workers.threads, thread_name_prefix="sampler") as pool:
        clock = time.perf_counter()
        while True:
            # One buffer more than threads, so that none of them waits while votes are recorded.
            while len(in_flight) <= workers.threads and (segments := scheduler.next_batch(workers.rows)):
                in_flight.append((segments, pool.submit(workers.work, segments)))
            if not in_flight:
                return
            segments, found = in_flight.popleft()
            vote_B = found.result()
            now = time.perf_counter()
            scheduler.record(segments, vote_B, now - clock)
            clock = now
            after_batch(sum(segment.count for segment in segments))


class _Workers:
    """What the threads share: free buffers, each with a noise source of its own, and the right to run the engine."""

    def __init__(
        self, engine: Engine, images: ImageSet, sigma: float, key: str, noise: str, engine_time: EngineTime
    ) -> None:
        self._engine, self._time, self._time_lock = engine, engine_time, Lock()
        size, shape = engine.info.batch_size, engine.info.input_shape
        self.rows = size * batches_per_buffer(size, shape)
        running = concurrent_calls(engine)
        self.threads = max(2, running)  # at least one to make noise while another runs the engine
        self._may_run = Semaphore(running)
        engine_time.calls = running
        self._free: SimpleQueue[tuple[np.ndarray, BatchFiller]] = SimpleQueue()
        for _ in range(self.threads):
            self._free.put((np.zeros((self.rows, *shape), np.float32), BatchFiller(images, sigma, key, noise)))

    def work(self, segments: list[Segment]) -> np.ndarray:
        """Votes of the segments' rows, and of those that fill up the last batch."""
        buffer, filler = self._free.get()
        try:
            filler.fill(buffer, segments)
            with self._may_run:
                begin = time.perf_counter()
                with stops_where_engine_fails(self._engine.info):
                    vote_B = votes_of_batches(self._engine, buffer, segments[-1].row + segments[-1].count)
                with self._time_lock:
                    self._time.seconds += time.perf_counter() - begin
            return vote_B
        finally:
            self._free.put((buffer, filler))


def batches_per_buffer(size: int, input_shape: tuple[int, int, int]) -> int:
    """As many batches as make 256 rows, but no more than 16 MB; at least one."""
    return max(1, min(-(-256 // size), (16 << 20) // (4 * size * math.prod(input_shape))))


def votes_of_batches(engine: Engine, buffer: np.ndarray, used: int) -> np.ndarray:
    """Votes of the first `used` rows and of those that fill up the last batch: each call has the engine's own shape."""
    size = engine.info.batch_size
    return np.concatenate([votes(engine.logits(buffer[i : i + size])) for i in range(0, used, size)])
