"""The Monte Carlo loop: noise into fixed-shape batches, batches through the engine, votes to the scheduler.

While the engine works on one buffer of a few batches, a thread fills the next. Memory is two buffers and the images in
flight, whatever n and the size of the data set. Knows nothing about files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ..data import ImageSet
from ..engines import Engine, on_device, votes
from ..noise.source import make_noise
from .scheduler import Scheduler, Segment


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
            index = segment.job.index
            self._noise.fill(rows, self._image(index), segment.stream, index, segment.first)

    def _image(self, index: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != index:
            self._cached = index, self._images.image(index).reshape(-1)
        return self._cached[1]


def run(
    engine: Engine,
    images: ImageSet,
    scheduler: Scheduler,
    *,
    sigma: float,
    key: str,
    noise: str = "gaussian",
    after_batch: Callable[[int], None],
    compiled: bool | None = None,
) -> None:
    """Sample until the scheduler has nothing left. `after_batch(samples)` is called after each recorded buffer.

    On a GPU, noise is made there: `compiled` False spares a short run the compiler's seconds.

    Two buffers in turn: the engine reads one while the other is filled. They hold several batches where batches are
    small: engines like batches that fit their caches, threads like to be left alone for some milliseconds.
    """
    device = on_device(engine)
    if device is not None and device.device.type == "cuda":
        from .device_sampler import run_on_device

        run_on_device(
            device, images, scheduler, sigma=sigma, key=key, noise=noise, after_batch=after_batch, compiled=compiled
        )
        return
    size = engine.info.batch_size
    rows = size * batches_per_buffer(size, engine.info.input_shape)
    buffers = [np.zeros((rows, *engine.info.input_shape), np.float32) for _ in range(2)]
    filler = BatchFiller(images, sigma, key, noise)

    with ThreadPoolExecutor(1, thread_name_prefix="noise") as pool:

        def start(turn: int) -> tuple[list[Segment], Future[None]] | None:
            segments = scheduler.next_batch(rows)
            return (segments, pool.submit(filler.fill, buffers[turn], segments)) if segments else None

        turn, clock = 0, time.perf_counter()
        coming = start(turn)
        while coming is not None:
            segments, filled = coming
            filled.result()
            coming = start(1 - turn)
            vote_B = votes_of_batches(engine, buffers[turn], segments[-1].row + segments[-1].count)
            now = time.perf_counter()
            scheduler.record(segments, vote_B, now - clock)
            clock = now
            after_batch(sum(segment.count for segment in segments))
            if coming is None:  # a rule may have asked for more, or the last batch was the only one in flight
                coming = start(1 - turn)
            turn = 1 - turn


def batches_per_buffer(size: int, input_shape: tuple[int, int, int]) -> int:
    """As many batches as make 512 rows, but no more than 16 MB; at least one."""
    return max(1, min(-(-512 // size), (16 << 20) // (4 * size * math.prod(input_shape))))


def votes_of_batches(engine: Engine, buffer: np.ndarray, used: int) -> np.ndarray:
    """Votes of the first `used` rows and of those that fill up the last batch: each call has the engine's own shape."""
    size = engine.info.batch_size
    return np.concatenate([votes(engine.logits(buffer[i : i + size])) for i in range(0, used, size)])
