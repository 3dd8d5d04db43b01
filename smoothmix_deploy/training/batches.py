"""Mini-batches in a random order that is a function of (seed, epoch), with batched augmentation.

Everything random in a step comes from a generator keyed by (seed, epoch, step) and is drawn for the whole mini-batch, so
a run can stop and go on anywhere, and processes that divide a mini-batch need no words about it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ..data import ImageSet, InMemorySet, LazySet
from ..errors import BadInput
from .division import Division

_SHARE_OF_FREE_MEMORY = 0.25
"""Of a GPU, that a data set may take."""


def keyed_generator(device: torch.device, seed: int, *address: int) -> torch.Generator:
    """A generator whose state is a function of `seed` and `address` alone."""
    digest = hashlib.sha256(repr((seed, *address)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Batch:
    """A loaded batch: m mini-batches of `size` images, of which `x` and `y` hold this process's, one after the other."""

    x_BCHW: torch.Tensor
    y_B: torch.Tensor
    size: int

    def __len__(self) -> int:
        return len(self.y_B)


class BatchSource:
    """Loaded batches of an epoch: float32 images on the device, augmented, with labels.

    A set in memory is moved to the device if it fits there, and batches are gathered, converted and augmented there;
    files are decoded by threads, a batch ahead.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        augment: str,
        seed: int,
        device: torch.device,
        *,
        m: int = 1,
        division: Division | None = None,
        decoders: int = 4,
    ) -> None:
        """A batch is m mini-batches of len(batch) // m images; a remainder is left out, as in the authors' code."""
        self._images, self._size, self._augment = images, min(batch_size, len(images)), augment
        self._seed, self._device, self._m = seed, device, m
        self._division, self._decoders = division or Division(), decoders
        self._labels = torch.from_numpy(images.labels).to(device)
        self._resident = _resident(images.x_NHWC, device) if isinstance(images, InMemorySet) else None

    def __len__(self) -> int:
        """Loaded batches an epoch; the last may be smaller."""
        return -(-len(self._images) // self._size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `first` on. BadInput names an image file that cannot be decoded."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._images))
        chunks = [order[i * self._size : (i + 1) * self._size] for i in range(first, len(self))]
        rows = [self._own_rows(len(chunk)) for chunk in chunks]
        mine = [chunk[own] for chunk, own in zip(chunks, rows, strict=True)]
        for number, (x, chunk, own) in enumerate(zip(self._load(mine, epoch), chunks, rows, strict=True), start=first):
            if self._augment == "crop-flip":
                generator = keyed_generator(torch.device("cpu"), self._seed, epoch, number, 1)
                x = crop_flip(x, self._moved(draw_crop_flip(len(chunk), generator)[:, own]))
            labels = self._labels[self._moved(torch.from_numpy(chunk[own]))]
            yield Batch(x, labels, len(chunk) // self._m)

    def _own_rows(self, batch: int) -> np.ndarray:
        """This process's share of each mini-batch, as rows of the batch."""
        size = batch // self._m
        parts = self._division.rows(size)
        return np.concatenate([np.arange(parts[0].start, parts[-1].stop) + i * size for i in range(self._m)])

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _load(self, chunks: list[np.ndarray], epoch: int) -> Iterator[torch.Tensor]:
        if self._resident is not None:
            for chunk in chunks:
                index = torch.from_numpy(chunk).to(self._resident.device, non_blocking=True)
                yield _unit_floats(self._moved(self._resident[index]))
            return
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(self._decoders) as decoders:
            coming = [ahead.submit(self._decode, chunk, epoch, decoders) for chunk in chunks[:1]]
            for following in [*chunks[1:], None][: len(chunks)]:
                x = coming.pop().result()
                if following is not None:
                    coming.append(ahead.submit(self._decode, following, epoch, decoders))
                yield self._moved(x)

    def _decode(self, indices: np.ndarray, epoch: int, decoders: ThreadPoolExecutor) -> torch.Tensor:
        images = self._images

        def decode(i: int) -> np.ndarray:
            try:
                if self._augment == "resized-crop" and isinstance(images, LazySet):
                    return images.random_crop(i, np.random.default_rng([self._seed, epoch, i]))
                return images.image(i)
            except (BadInput, MemoryError):
                raise
            except Exception as error:  # whatever a decoder makes of a damaged file
                name = images.files[i] if isinstance(images, LazySet) else f"image {i}"
                raise BadInput(f"{name}: cannot be decoded ({type(error).__name__}: {error})") from None

        found = list(decoders.map(decode, indices.tolist())) or [np.empty((0, *images.shape), np.float32)]
        x = torch.from_numpy(np.stack(found) if len(indices) else found[0])
        return x.pin_memory() if self._device.type == "cuda" else x


def _resident(x_NHWC: np.ndarray, device: torch.device) -> torch.Tensor:
    """The set as one tensor, uint8 or float32, on the device if it takes no more than a share of its free memory."""
    kept = torch.from_numpy(np.require(x_NHWC, None if x_NHWC.dtype == np.uint8 else np.float32, ["C", "W"]))
    if device.type != "cuda":
        return kept
    free, _ = torch.cuda.mem_get_info(device)
    return kept.to(device) if kept.nbytes <= _SHARE_OF_FREE_MEMORY * free else kept


def _unit_floats(x_NHWC: torch.Tensor) -> torch.Tensor:
    """float32 [N, C, H, W] in [0, 1], to the bit what `image_set.to_unit_floats` gives."""
    x_NCHW = x_NHWC.permute(0, 3, 1, 2).contiguous()
    if x_NCHW.dtype != torch.uint8:
        return x_NCHW
    # By a tensor: CUDA divides by a number by multiplying with its inverse.
    return x_NCHW.float() / torch.full((1,), 255.0, device=x_NCHW.device)


def decoder_threads(local_processes: int) -> int:
    """A process's share of this machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(4, cores // local_processes)


_PAD = 4


def draw_crop_flip(batch: int, generator: torch.Generator) -> torch.Tensor:
    """[3, batch] integers for `crop_flip`: whether to flip, and the crop's top and left."""
    flip = torch.rand(batch, generator=generator) < 0.5
    corner = torch.randint(0, 2 * _PAD + 1, (2, batch, 1), generator=generator)
    return torch.cat([flip.long()[None], corner.squeeze(2)])


def crop_flip(x_BCHW: torch.Tensor, draws_3B: torch.Tensor) -> torch.Tensor:
    """A horizontal flip with probability 1/2 and a random crop after padding 4 with zeros."""
    batch, channels, height, width = x_BCHW.shape
    device = x_BCHW.device
    flip, top, left = draws_3B
    x_BCHW = torch.where(flip.bool().view(-1, 1, 1, 1), x_BCHW.flip(3), x_BCHW)
    padded = torch.nn.functional.pad(x_BCHW, (_PAD,) * 4)
    rows = (top[:, None] + torch.arange(height, device=device)).view(batch, 1, height, 1)
    columns = (left[:, None] + torch.arange(width, device=device)).view(batch, 1, 1, width)
    samples = torch.arange(batch, device=device).view(batch, 1, 1, 1)
    planes = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return padded[samples, planes, rows, columns]
