"""The kinds of noise behind one interface: noisy images in, whatever the kind.

`gaussian` adds floats, `grid` integers (see the modules of these names). A run's samples are a function of (noise, key,
sigma, image, stream, sample number).
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from ..errors import BadInput
from . import gaussian, grid

GENERATORS = {"gaussian": gaussian.GENERATOR, "grid": grid.GENERATOR}
"""By the names of --noise: what manifests hold as `generator`."""


class NoiseSource(Protocol):
    """Noisy copies of images of one shape. Holds scratch memory: one object a thread."""

    def fill(self, out_ND: np.ndarray, image_D: np.ndarray, stream: int, image: int, first: int) -> None:
        """Write samples first .. first + N - 1 of image number `image`, pixels image_D, to out_ND, float32 [N, D].

        Rows of out_ND are C-contiguous. BadInput for an image that this noise does not take.
        """
        ...


def make_noise(name: str, key: str, sigma: float, shape: tuple[int, int, int]) -> NoiseSource:
    """The noise called `name` for images [C, H, W]; BadInput for unknown names and a sigma out of range."""
    check_name(name)
    kind = GaussianSource if name == "gaussian" else GridSource
    return kind(key, sigma, math.prod(shape))


def noise_slack(name: str, sigma: float, shape: tuple[int, int, int]) -> float:
    """What to take off a probability sampled with this noise (0 where the drawn noise is taken for exact)."""
    check_name(name)
    return grid.grid_slack(sigma, math.prod(shape)) if name == "grid" else 0.0


def check_name(name: str) -> None:
    """BadInput unless --noise knows `name`."""
    if name not in GENERATORS:
        raise BadInput(f"--noise {name}: unknown; known: {', '.join(GENERATORS)}")


class GaussianSource:
    """x + sigma * N(0, 1) in float32."""

    def __init__(self, key: str, sigma: float, dim: int) -> None:
        self._normals, self._sigma = gaussian.GaussianNoise(key, dim), np.float32(sigma)

    def fill(self, out_ND: np.ndarray, image_D: np.ndarray, stream: int, image: int, first: int) -> None:
        """See NoiseSource."""
        self._normals.fill(out_ND, stream, image, first)
        out_ND *= self._sigma
        out_ND += image_D


class GridSource:
    """8-bit images plus Gaussian noise rounded to multiples of 1/255, in integers."""

    def __init__(self, key: str, sigma: float, dim: int) -> None:
        self._noise = grid.GridNoise(key, sigma, dim)

    def fill(self, out_ND: np.ndarray, image_D: np.ndarray, stream: int, image: int, first: int) -> None:
        """See NoiseSource."""
        self._noise.fill(out_ND, grid.to_grid(image_D, image), stream, image, first)
