"""Noisy batches as torch tensors, on the device that runs the engine: the same integers as gaussian.py and grid.py.

A batch is made of rows of several images; each row is addressed by (slot in a table of images, image number, stream,
sample number), so one call fills a batch whatever its segments are. On CUDA torch.compile fuses the operations; on the
CPU they run eagerly, for tests: NumPy is faster there. Grid noise is bit for bit that of grid.py; of Gaussian noise the
integers are, and the floats differ by the rounding of log, sin and cos.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import grid
from .source import check_name

_LOW = 0xFFFFFFFF
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}  # values made at a time: a few dozen bytes of scratch each


class DeviceNoise:
    """Fills batches of noisy images [B, D] on one device. `name`, `key`, `sigma`, `shape` as for make_noise."""

    def __init__(
        self,
        name: str,
        key: str,
        sigma: float,
        shape: tuple[int, int, int],
        device: torch.device | str,
        *,
        compiled: bool | None = None,
    ) -> None:
        """`compiled`: None: on CUDA only."""
        check_name(name)
        self.device, self.dim, self._grid = torch.device(device), math.prod(shape), name == "grid"
        self._rows = max(1, _CHUNK.get(self.device.type, 1 << 18) // self.dim)
        fill: Callable[..., Tensor]
        if self._grid:
            fill, constants = grid_batch, _grid_constants(sigma, self.dim, self.device)
        else:
            fill, constants = gaussian_batch, {"sigma": float(np.float32(sigma))}
        number = int(key, 16)
        # A tensor, not a constant of the graph: the compiler's cache then serves every run, whatever its key.
        halves = torch.tensor([_signed(number & (2**64 - 1)), _signed(number >> 64)], device=self.device)
        self._constants = {"key": halves, **constants}
        use = self.device.type == "cuda" if compiled is None else compiled
        self._fill: Callable[..., Tensor] = torch.compile(fill, dynamic=False) if use else fill

    def table_row(self, image_D: np.ndarray, index: int) -> np.ndarray:
        """An image as `fill` wants it in its table, float32 [D]; BadInput for an image that the noise does not take."""
        return grid.to_grid(image_D, index).astype(np.float32) if self._grid else image_D.astype(np.float32)

    def fill(self, table_SD: Tensor, slot_B: Tensor, image_B: Tensor, stream_B: Tensor, sample_B: Tensor) -> Tensor:
        """Noisy float32 [B, D]: row b is sample sample_B[b] of stream stream_B[b] of image number image_B[b].

        table_SD: rows of `table_row`, on the device; slot_B says which of them is row b's. All indices int64 [B].
        """
        address_4B = torch.stack((slot_B, image_B, stream_B, sample_B))
        parts = [self._fill(table_SD, part, **self._constants) for part in address_4B.split(self._rows, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def gaussian_batch(table_SD: Tensor, address_4B: Tensor, *, key: Tensor, sigma: float) -> Tensor:
    """x + sigma * normal, as gaussian.py makes it."""
    slot_B, image_B, stream_B, sample_B = address_4B
    dim = table_SD.shape[1]
    blocks = -(-dim // 8)
    words_BW = philox(sample_B, blocks, image_B, stream_B, 0, key)
    # The lower half of a word comes first, as in memory.
    signed = torch.stack((words_BW << 32 >> 32, words_BW >> 32), dim=2).flatten(1).to(torch.float32)
    radius, angle = signed[:, : 4 * blocks].abs() * 2.0**-31 + 2.0**-33, signed[:, 4 * blocks :]
    radius = (radius.log() * -2.0).sqrt()
    angle = angle * float(np.float32(np.pi * 2.0**-31))
    normal_BD = torch.cat((angle.cos() * radius, angle.sin() * radius), dim=1)[:, :dim]
    return normal_BD * sigma + table_SD[slot_B]


def grid_batch(
    table_SD: Tensor, address_4B: Tensor, *, key: Tensor, lowest: int, value: Tensor,
    thresholds: Tensor, refinement_blocks: int,
) -> Tensor:  # fmt: skip
    """(x + noise) / 255, as grid.py makes it; x in units of 1/255."""
    slot_B, image_B, stream_B, sample_B = address_4B
    dim = table_SD.shape[1]
    words_BW = philox(sample_B, -(-dim // 16), image_B, stream_B, grid.MAIN_REGION, key)
    upper_BD = torch.stack([words_BW >> 16 * lane & 0xFFFF for lane in range(4)], dim=2).flatten(1)[:, :dim]
    refinement_BR = philox(sample_B, refinement_blocks, image_B, stream_B, grid.REFINEMENT_REGION, key)
    first_BD = value[upper_BD]
    open_BD = first_BD == int(grid.OPEN)
    order_BD = open_BD.cumsum(1) - 1
    enough = refinement_BR.shape[1]
    lower_BD = refinement_BR.gather(1, order_BD.clamp(0, enough - 1)) >> 16 & (1 << 48) - 1
    lower_BD = torch.where(order_BD < enough, lower_BD, 0)
    # Signed comparison of numbers whose highest bit is flipped is unsigned comparison of the numbers.
    draw_BD = ((upper_BD << 48) | lower_BD) ^ -(2**63)
    refined_BD = torch.searchsorted(thresholds, draw_BD, right=True) + lowest
    noise_BD = torch.where(open_BD, refined_BD, first_BD.to(torch.int64))
    # Sums of small integers are exact in float32: one rounding, in the last multiplication.
    return (noise_BD.to(torch.float32) + table_SD[slot_B]) * float(grid.UNIT)


def _grid_constants(sigma: float, dim: int, device: torch.device) -> dict[str, Any]:
    table = grid.grid_table(sigma)
    flipped = (table.thresholds ^ np.uint64(2**63)).view(np.int64)
    return {
        "lowest": table.lowest,
        "value": torch.from_numpy(table.value).to(device),
        "thresholds": torch.from_numpy(flipped).to(device),
        "refinement_blocks": grid.refinement_blocks(dim, table.open_buckets),
    }


def philox(sample_B: Tensor, blocks: int, image_B: Tensor, stream_B: Tensor, region: int, key: Tensor) -> Tensor:
    """Philox-4x64-10 words of samples that take `blocks` blocks each, int64 [B, 4 blocks]; the bits are unsigned.

    Salmon et al. 2011, section 3.3. Counter: (sample * blocks + block + 1, image, stream, region); the 1 is NumPy's.
    """
    block = torch.arange(1, blocks + 1, device=sample_B.device, dtype=torch.int64)
    c0 = sample_B[:, None] * blocks + block
    c1, c2 = image_B[:, None].expand_as(c0), stream_B[:, None].expand_as(c0)
    c3 = torch.full_like(c0, region)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(0xD2E7470EE14C6C93, c0)
        high1, low1 = _product(0xCA5A826395121157, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _signed(0x9E3779B97F4A7C15), k1 + _signed(0xBB67AE8584CAA73B)
    return torch.stack((c0, c1, c2, c3), dim=2).flatten(1)


def _product(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 64 bits of the unsigned product, by halves of 32 bits, in wrapping signed arithmetic."""
    low_c, high_c = constant & _LOW, constant >> 32
    low_x, high_x = x & _LOW, x >> 32 & _LOW
    middle = high_c * low_x + _upper_half(low_c * low_x)
    other = low_c * high_x + (middle & _LOW)
    return high_c * high_x + _upper_half(middle) + _upper_half(other), x * _signed(constant)


def _upper_half(x: Tensor) -> Tensor:
    return x >> 32 & _LOW


def _signed(number: int) -> int:
    """The signed 64-bit integer with the bits of `number` modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63
