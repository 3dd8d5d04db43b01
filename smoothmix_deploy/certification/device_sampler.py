"""The Monte Carlo loop where the engine's batches live on a GPU: noise, inference and argmax stay there, votes come back.

Noise for one batch is made on a stream of its own while the engine works on another; the host only hands out addresses
and adds up votes, two batches behind. Memory is a table of as many images as a batch has rows, and three batches,
whatever n. The host's twin is `sampler`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from ..data import ImageSet
from ..engines import DeviceEngine, device_votes
from ..noise.on_device import DeviceNoise
from .opening import stops_where_engine_fails
from .sampler import WorkSource
from .scheduler import Segment

_IN_FLIGHT = 2
"""Batches whose votes are not back yet: enough for the GPU never to wait for the host."""


def run_on_device(
    engine: DeviceEngine,
    images: ImageSet,
    scheduler: WorkSource,
    *,
    sigma: float,
    key: str,
    noise: str,
    after_batch: Callable[[int], None],
    compiled: bool | None = None,
) -> None:
    """As `sampler.run`, for an engine that takes tensors. `compiled`: whether noise is worth a compiler's seconds."""
    batches = _Batches(engine, images, _working_noise(engine, images, noise, key, sigma, compiled))
    in_flight: deque[_Launched] = deque()
    clock = time.perf_counter()
    while True:
        segments = scheduler.next_batch(engine.info.batch_size)
        if segments:
            with stops_where_engine_fails(engine.info):
                in_flight.append(batches.launch(segments))
        if not in_flight:
            return
        if len(in_flight) < _IN_FLIGHT and segments:
            continue
        oldest = in_flight.popleft()
        with stops_where_engine_fails(engine.info):
            vote_B = oldest.wait()
        now = time.perf_counter()
        scheduler.record(oldest.segments, vote_B, now - clock)
        clock = now
        after_batch(sum(segment.count for segment in oldest.segments))


def _working_noise(
    engine: DeviceEngine, images: ImageSet, name: str, key: str, sigma: float, compiled: bool | None
) -> DeviceNoise:
    """Tried on one batch: where the machine has no compiler for it, the same operations run one by one."""
    noise = DeviceNoise(name, key, sigma, images.shape, engine.device, compiled=compiled)
    rows = engine.info.batch_size
    table_SD = torch.zeros((rows, noise.dim), device=engine.device)
    try:
        noise.fill(table_SD, *torch.zeros((4, rows), dtype=torch.int64, device=engine.device))
    except Exception:  # Inductor's and Triton's errors are many
        if compiled is False or engine.device.type != "cuda":
            raise
        return DeviceNoise(name, key, sigma, images.shape, engine.device, compiled=False)
    return noise


@dataclass(frozen=True)
class _Launched:
    """A batch on its way. `done`: None on the CPU, where nothing is asynchronous."""

    segments: list[Segment]
    votes_B: torch.Tensor
    done: torch.cuda.Event | None

    def wait(self) -> np.ndarray:
        """The votes, int64 [B], once they are here."""
        if self.done is not None:
            self.done.synchronize()
        return self.votes_B.numpy()


class _Batches:
    """Enqueues batches: addresses to the device, noise on one stream, engine and argmax on another."""

    def __init__(self, engine: DeviceEngine, images: ImageSet, noise: DeviceNoise) -> None:
        self._engine, self._images, self._noise = engine, images, noise
        self._rows, self._device = engine.info.batch_size, engine.device
        self._cuda = self._device.type == "cuda"
        self._noise_stream = torch.cuda.Stream(self._device) if self._cuda else None
        self._table_SD = torch.zeros((self._rows, noise.dim), device=self._device)
        self._slots: dict[int, int] = {}  # image -> its row of the table; least recently used first
        if self._noise_stream is not None:
            self._noise_stream.wait_stream(
                torch.cuda.current_stream(self._device)
            )  # for the table and noise's constants

    def launch(self, segments: list[Segment]) -> _Launched:
        """Enqueue one batch."""
        with self._on(self._noise_stream):
            address_4B = self._to_device(self._addresses(segments))
            x_BD = self._noise.fill(self._table_SD, *address_4B)
        if self._noise_stream is not None:
            work = torch.cuda.current_stream(self._device)
            work.wait_stream(self._noise_stream)
            x_BD.record_stream(work)  # its memory may be used again only once the engine has read it
        vote_B = device_votes(self._engine.device_logits(x_BD.view(-1, *self._images.shape)))
        if not self._cuda:
            return _Launched(segments, vote_B, None)
        here = torch.empty(vote_B.shape, dtype=vote_B.dtype, pin_memory=True)
        here.copy_(vote_B, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        return _Launched(segments, here, done)

    def _addresses(self, segments: list[Segment]) -> torch.Tensor:
        """int64 [4, B]: slot, image, stream and sample number of each row; rows without a sample repeat slot 0."""
        address_4B = torch.zeros((4, self._rows), dtype=torch.int64, pin_memory=self._cuda)
        needed = list(dict.fromkeys(segment.index for segment in segments))
        for index in needed:  # first those that are there, so that they are not the ones to make room
            if index in self._slots:
                self._slots[index] = self._slots.pop(index)
        slot_of = {index: self._slot(index) for index in needed}
        for segment in segments:
            rows = slice(segment.row, segment.row + segment.count)
            address_4B[0, rows] = slot_of[segment.index]
            address_4B[1, rows] = segment.index
            address_4B[2, rows] = int(segment.stream)
            address_4B[3, rows] = torch.arange(segment.first, segment.first + segment.count)
        return address_4B

    def _slot(self, index: int) -> int:
        """The image's row of the table; it is put there if need be, in the place of the least recently used one.

        Enqueued on the noise stream, so after the batches that still read the old image.
        """
        if index not in self._slots:
            free = len(self._slots)
            slot = free if free < self._rows else self._slots.pop(next(iter(self._slots)))
            row = torch.from_numpy(self._noise.table_row(self._images.image(index).reshape(-1), index))
            self._table_SD[slot].copy_(row)
            self._slots[index] = slot
        return self._slots[index]

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _on(self, stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)
