"""Noise on the pixel grid, in integers: what makes a certificate hold for the floats that the engine really sees.

Voracek and Hein, "Sound Randomized Smoothing in Floating-Point Arithmetic", ICLR 2023 (arXiv 2207.07209). Image and
noise are integers in units of 1/255; their sum m becomes float32(m) * float32(1/255), a single IEEE multiplication
and so the same float everywhere. With f the classifier, h(z) = f(float(round(255 z))) is a function of real z, and for
an 8-bit image x, h(x + sigma Z) with exactly Gaussian Z is what is sampled here: Cohen et al.'s theorem holds for h.

Layout, fixed for ever under the name `GENERATOR`: 64 uniform bits a draw, most of which are never looked at. Draw d of
sample s of image i in stream t has its upper 16 bits in lane d of the ceil(dim / 16) Philox blocks from counter
(s * ceil(dim / 16), i, t, 1). A table gives the integer where these decide. Where a threshold lies in their bucket (1.7 %
of draws at sigma 0.5) the draw is open: the j-th open draw of the sample has its lower 48 bits in the upper 48 of word j
of the `refinement_blocks` from counter (s * refinement_blocks, i, t, 2). The words of a sample are thus fixed in
number, and it can be drawn alone. If more draws are open than there are words (probability under 2^-64), the rest have
zeros: statistics.bounds.grid_noise_slack accounts for that, and for the rounding of thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np

from ..errors import BadInput
from ..statistics.bounds import grid_noise_slack
from .thresholds import largest_step, thresholds

GENERATOR = "philox4x64-10/grid-255-16+48"
LEVELS = 255
UNIT = np.float32(1 / 255)
TOLERANCE = 1e-6
"""How far, in [0, 1] units, a pixel may be from the grid: rounding of float32, nothing more."""

MAIN_REGION, REFINEMENT_REGION = 1, 2  # the counter's last word; 0 is Gaussian noise
OPEN = np.int16(-(2**15))

_CHUNK = 1 << 16  # draws made at a time: the scratch stays in the processor's cache


@dataclass(frozen=True)
class GridTable:
    """What the upper 16 bits of a draw say. `lowest` is -K, the smallest noise."""

    thresholds: np.ndarray
    """uint64 [2 K], ascending."""
    lowest: int
    start: np.ndarray
    """int16 [2^16]: the noise if the lower 48 bits were zeros."""
    value: np.ndarray
    """int16 [2^16]: the noise, or OPEN where the lower 48 bits matter."""
    border: np.ndarray
    """uint64 [2^16]: the first threshold inside the bucket, where there is one."""
    crowded: np.ndarray
    """bool [2^16]: there are several. In the tails only: one comparison decides most open draws."""

    @property
    def open_buckets(self) -> int:
        """How many of the 2^16 values of the upper bits leave the draw open."""
        return int((self.value == OPEN).sum())


@lru_cache(maxsize=8)
def grid_table(sigma: float) -> GridTable:
    """The table for `sigma`; BadInput where it is out of range."""
    bounds, lowest = thresholds(sigma), -largest_step(sigma)
    first = np.arange(2**16, dtype=np.uint64) << np.uint64(48)
    begin = np.searchsorted(bounds, first, side="right")
    end = np.searchsorted(bounds, first + np.uint64(2**48 - 1), side="right")
    start = (begin + lowest).astype(np.int16)
    border = np.zeros(2**16, np.uint64)
    border[begin < end] = bounds[begin[begin < end]]
    return GridTable(bounds, lowest, start, np.where(begin == end, start, OPEN), border, end - begin > 1)


def refinement_blocks(dim: int, open_buckets: int) -> int:
    """Philox blocks (4 words) a sample for its open draws, too few with probability < 2^-64.

    Bernstein's inequality for the number of open draws X, of mean lam = dim * open_buckets / 2^16: P[X >= lam + t] <=
    exp(-t^2 / (2 (lam + t/3))), which is <= exp(-45) if t^2 >= 30 t + 90 lam. In integers, as the layout depends on it.
    """
    scaled = dim * open_buckets  # 2^16 lam
    # t = 15 + sqrt(225 + 90 lam), rounded up; times 2^8 under the root.
    t_times_256 = 15 * 256 + isqrt((225 << 16) + 90 * scaled) + 1
    words = min(dim, -(-(scaled + (t_times_256 << 8)) >> 16))
    return -(-words // 4)


def grid_slack(sigma: float, dim: int) -> float:
    """How much the true probability may lie below the sampled one, for samples of `dim` values."""
    return grid_noise_slack(dim, 2 * largest_step(sigma))


def to_grid(image_D: np.ndarray, index: int) -> np.ndarray:
    """An image as integers 0 .. 255, int16 [dim]; BadInput for an image that is not 8-bit: its index and a value."""
    scaled = image_D.astype(np.float64) * LEVELS
    levels = np.clip(np.rint(scaled), 0, LEVELS)
    off = ~(np.abs(scaled - levels) <= TOLERANCE * LEVELS)  # NaN is off, too
    if off.any():
        raise BadInput(
            f"--noise grid: image {index} has the value {image_D[off][0]:.6g}, no multiple of 1/255 in [0, 1]; "
            "the certificate would be another image's: use --noise gaussian, or 8-bit images"
        )
    return levels.astype(np.int16)


class GridNoise:
    """Draws noisy 8-bit images of `dim` values. Holds scratch memory: one object a thread."""

    def __init__(self, key: str, sigma: float, dim: int) -> None:
        """`key`: 32 hex digits. `dim`: values a sample (C * H * W)."""
        number = int(key, 16)
        words = np.array([number & (2**64 - 1), number >> 64], dtype=np.uint64)
        self.dim, self._table = dim, grid_table(sigma)
        self._blocks = -(-dim // 16), refinement_blocks(dim, self._table.open_buckets)
        self._bits = [np.random.Philox(key=words) for _ in self._blocks]
        self._states = [bits.state for bits in self._bits]
        self._integers = [np.random.Generator(bits).integers for bits in self._bits]
        self._rows = max(1, _CHUNK // dim)
        self._scratch = np.empty((self._rows, dim), np.int16)

    def fill(self, out_ND: np.ndarray, image_D: np.ndarray, stream: int, image: int, first: int) -> None:
        """Write noisy copies of image_D, integers 0 .. 255, as float32 [N, dim]: samples first .. first + N - 1."""
        for bits, state, blocks, region in zip(
            self._bits, self._states, self._blocks, (MAIN_REGION, REFINEMENT_REGION), strict=True
        ):
            # NumPy counts up before it draws, so the first block comes from counter + 1: part of the layout.
            state["state"]["counter"] = np.array([first * blocks, image, stream, region], np.uint64)
            state["buffer_pos"] = 4
            state["has_uint32"] = 0
            bits.state = state
        for start in range(0, len(out_ND), self._rows):
            rows_ND = out_ND[start : start + self._rows]
            noise_ND = self._draw(len(rows_ND))
            noise_ND += image_D
            np.copyto(rows_ND, noise_ND)
            rows_ND *= UNIT

    def _draw(self, rows: int) -> np.ndarray:
        """The next `rows` samples' noise, int16 [rows, dim] (scratch)."""
        upper_ND = self._words(0, rows).view("<u2").reshape(rows, -1)[:, : self.dim]
        refinement_NR = self._words(1, rows).reshape(rows, -1)
        noise_ND = self._scratch[:rows]
        np.take(self._table.value, upper_ND, out=noise_ND, mode="wrap")  # never wraps; "raise" would buffer
        refine(noise_ND, upper_ND, refinement_NR, self._table)
        return noise_ND

    def _words(self, region: int, rows: int) -> np.ndarray:
        # The full 64-bit range is Philox's own output, word for word, and several times faster than random_raw.
        size = 4 * rows * self._blocks[region]
        words = self._integers[region](0, 2**64 - 1, size, dtype=np.uint64, endpoint=True)
        return words.astype("<u8", copy=False)


def refine(noise_ND: np.ndarray, upper_ND: np.ndarray, refinement_NR: np.ndarray, table: GridTable) -> None:
    """Replace what is OPEN by its value: the j-th of a row is decided by word j of the row's refinement."""
    rows, dim = noise_ND.shape
    at = np.flatnonzero(noise_ND == OPEN)
    row = at // dim
    order = np.arange(len(at)) - np.searchsorted(at, np.arange(rows) * dim)[row]
    upper = upper_ND[row, at - row * dim]
    enough = refinement_NR.shape[1]
    lower = refinement_NR[row, np.minimum(order, enough - 1)] >> np.uint64(16)
    if len(order) and order.max() >= enough:
        lower[order >= enough] = 0
    draw = upper.astype(np.uint64) << np.uint64(48) | lower
    found = table.start[upper] + (draw >= table.border[upper])
    several = np.flatnonzero(table.crowded[upper])
    found[several] = np.searchsorted(table.thresholds, draw[several], side="right") + table.lowest
    noise_ND.reshape(-1)[at] = found
