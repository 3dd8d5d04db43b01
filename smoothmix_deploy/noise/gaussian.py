"""Standard normal noise, addressed by (key, stream, image, sample).

Counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): Philox-4x64-10 keyed with 128
bits, its counter made of the address, so any sample of any image can be drawn alone, in any order, on any machine.
Batch size, sharding, interruption and resumption therefore change nothing. Knows nothing about sigma or images.

Layout, fixed for ever under the name `GENERATOR`: sample s of image i in stream t starts at counter
(s * ceil(dim / 8), i, t, 0) and takes ceil(dim / 8) Philox blocks = 8 uniform 32-bit integers each. The first half of
a sample's integers gives radii, the second angles (Box and Muller 1958); the normals are the cosines of all pairs,
then the sines, cut to `dim`. The integers are the same on every machine; the last bits of the floats may differ
between processors, as those of any floating-point logarithm do.
"""

from __future__ import annotations

import hashlib
import secrets
from enum import IntEnum

import numpy as np

NOISE = "gaussian"
GENERATOR = "philox4x64-10/box-muller-32"
KEY_BITS = 128

_CHUNK = 1 << 16  # normals made at a time: the scratch stays in the processor's cache


class Stream(IntEnum):
    """Independent sample sequences of one image."""

    SELECTION = 0
    ESTIMATION = 1
    PARITY = 2
    SELF_TEST = 3
    CALIBRATION = 4


def random_key() -> str:
    """128 bits from the operating system, in hex: what a certificate needs, as nobody can have known it before."""
    return secrets.token_hex(KEY_BITS // 8)


def key_from_seed(seed: int) -> str:
    """A key for reproducing a run; an adversary may have known it, so manifests mark it."""
    return hashlib.sha256(b"smoothmix_deploy key from seed %d" % seed).hexdigest()[: KEY_BITS // 4]


class GaussianNoise:
    """Draws standard normals for samples of `dim` values. Holds scratch memory: one object a thread."""

    def __init__(self, key: str, dim: int) -> None:
        """`key`: 32 hex digits. `dim`: values a sample (C * H * W)."""
        number = int(key, 16)
        words = np.array([number & (2**64 - 1), number >> 64], dtype=np.uint64)
        self._bits = np.random.Philox(key=words)
        self._integers = np.random.Generator(self._bits).integers
        self._state = self._bits.state
        self.dim = dim
        self._blocks = -(-dim // 8)
        self._half = 4 * self._blocks
        self._rows = max(1, _CHUNK // (2 * self._half))
        self._scratch = np.empty((3, self._rows * self._half), np.float32)
        self._padded = np.empty((self._rows, 2 * self._half), np.float32)

    def fill(self, out_ND: np.ndarray, stream: int, image: int, first: int) -> None:
        """Write samples first .. first + N - 1 of `image` into out_ND, float32 [N, dim], C-contiguous rows."""
        self._seek(stream, image, first)
        for start in range(0, len(out_ND), self._rows):
            self._fill_rows(out_ND[start : start + self._rows])

    def _seek(self, stream: int, image: int, first: int) -> None:
        state = self._state
        # NumPy counts up before it draws, so the first block comes from counter + 1: part of the layout.
        state["state"]["counter"] = np.array([first * self._blocks, image, stream, 0], np.uint64)
        state["buffer_pos"] = 4
        state["has_uint32"] = 0
        self._bits.state = state

    def _fill_rows(self, out_ND: np.ndarray) -> None:
        rows, half = len(out_ND), self._half
        # The full 64-bit range is Philox's own output, word for word, and several times faster than random_raw.
        raw = self._integers(0, 2**64 - 1, rows * half, dtype=np.uint64, endpoint=True)
        signed = raw.astype("<u8", copy=False).view("<i4").reshape(rows, 2 * half)
        # Contiguous scratch, so that the transcendental functions run at full vector width whatever `dim` is.
        radius, angle, wave = self._scratch[:, : rows * half]
        np.copyto(radius.reshape(rows, half), signed[:, :half], casting="unsafe")
        np.copyto(angle.reshape(rows, half), signed[:, half:], casting="unsafe")
        np.abs(radius, out=radius)
        radius *= np.float32(2.0**-31)
        radius += np.float32(2.0**-33)  # never 0: |integer| = 0 has half the weight of the others
        np.log(radius, out=radius)
        radius *= np.float32(-2.0)
        np.sqrt(radius, out=radius)
        angle *= np.float32(np.pi * 2.0**-31)
        # Straight into `out` where the layout fits (dim a multiple of 8, as for 8x8, 28x28, 32x32, 224x224).
        target = out_ND if self.dim == 2 * half else self._padded[:rows]
        for columns, function in ((slice(0, half), np.cos), (slice(half, None), np.sin)):
            function(angle, out=wave)
            np.multiply(wave.reshape(rows, half), radius.reshape(rows, half), out=target[:, columns])
        if target is not out_ND:
            out_ND[:] = target[:, : self.dim]
