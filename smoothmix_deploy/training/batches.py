"""Mini-batches in a random order that is a function of (seed, epoch), with batched augmentation.

Everything random in a step comes from a generator keyed by (seed, epoch, step), so a run can stop and go on anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..data import ImageSet, InMemorySet, LazySet


def keyed_generator(device: torch.device, seed: int, *address: int) -> torch.Generator:
    """A generator whose state is a function of `seed` and `address` alone."""
    digest = hashlib.sha256(repr((seed, *address)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class BatchSource:
    """Loaded batches of an epoch: float32 images on the device, augmented, with labels."""

    def __init__(self, images: ImageSet, batch_size: int, augment: str, seed: int, device: torch.device) -> None:
        self._images, self._size, self._augment = images, min(batch_size, len(images)), augment
        self._seed, self._device = seed, device
        self._labels = torch.from_numpy(images.labels)

    def __len__(self) -> int:
        """Loaded batches an epoch; the last may be smaller."""
        return -(-len(self._images) // self._size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of `epoch` from number `first` on."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._images))
        chunks = [order[i * self._size : (i + 1) * self._size] for i in range(first, len(self))]
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(4) as decoders:
            coming = [ahead.submit(self._load, chunk, epoch, decoders) for chunk in chunks[:1]]
            for number, chunk in enumerate(chunks, start=first):
                x = coming.pop().result()
                if number + 1 < len(self):
                    coming.append(ahead.submit(self._load, chunks[number + 1 - first], epoch, decoders))
                generator = keyed_generator(torch.device("cpu"), self._seed, epoch, number, 1)
                x = augment_batch(x, self._augment, generator)
                yield x.to(self._device), self._labels[chunk].to(self._device)

    def _load(self, indices: np.ndarray, epoch: int, decoders: ThreadPoolExecutor) -> torch.Tensor:
        images = self._images
        if isinstance(images, InMemorySet):
            return torch.from_numpy(images.batch(indices))

        def decode(i: int) -> np.ndarray:
            if self._augment == "resized-crop" and isinstance(images, LazySet):
                return images.random_crop(i, np.random.default_rng([self._seed, epoch, i]))
            return images.image(i)

        return torch.from_numpy(np.stack(list(decoders.map(decode, indices.tolist()))))


def augment_batch(x_BCHW: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """ "none"; "crop-flip": a horizontal flip with probability 1/2 and a random crop after padding 4 with zeros."""
    if kind in ("none", "resized-crop"):  # the latter happens at decoding
        return x_BCHW
    batch, _, height, width = x_BCHW.shape
    flip = torch.rand(batch, generator=generator) < 0.5
    x_BCHW = torch.where(flip.view(-1, 1, 1, 1), x_BCHW.flip(3), x_BCHW)
    assert kind == "crop-flip", kind
    pad = 4
    padded = torch.nn.functional.pad(x_BCHW, (pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator)
    rows = (top + torch.arange(height)).view(batch, 1, height, 1)
    columns = (left + torch.arange(width)).view(batch, 1, 1, width)
    samples = torch.arange(batch).view(batch, 1, 1, 1)
    channels = torch.arange(x_BCHW.shape[1]).view(1, -1, 1, 1)
    return padded[samples, channels, rows, columns]
