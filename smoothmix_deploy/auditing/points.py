"""Where exactly an adversarial image lies: inside the ball in exact arithmetic, on the pixel grid if the noise is.

A flip accuses a certificate, so its distance must not be a matter of rounding. NumPy only.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from ..data.image_set import to_unit_floats
from ..noise.grid import LEVELS, to_grid

SHARE = 1 - 1e-4
"""Attacks stay within this share of a radius: far more than the rounding of any arithmetic here."""


def place(image_CHW: np.ndarray, delta_CHW: np.ndarray, radius: float, noise: str) -> tuple[np.ndarray, float]:
    """(point float32 [C, H, W], its L2 distance from the float32 image), the distance <= SHARE * radius.

    `gaussian` certificates hold for all real vectors: points may leave [0, 1]. Those of `grid` noise speak of 8-bit
    images: the point is one.
    """
    if noise == "grid":
        return _on_grid(image_CHW, delta_CHW, radius)
    limit, image = SHARE * radius, image_CHW.astype(np.float64)
    delta = delta_CHW.astype(np.float64)
    delta *= min(1.0, limit / max(float(np.linalg.norm(delta)), 1e-300))
    while True:  # rounding to float32 may lengthen it by a part in 10^7: twice at most
        point = (image + delta).astype(np.float32)
        distance = float(np.linalg.norm(point.astype(np.float64) - image))
        if distance <= limit:
            return point, distance
        delta *= 1 - 1e-6


def _on_grid(image_CHW: np.ndarray, delta_CHW: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """Rounded to the nearest levels after shrinking by as little as brings it into the ball; integers decide."""
    levels = to_grid(image_CHW.reshape(-1), 0).astype(np.int64)
    most = math.floor((Fraction(SHARE) * Fraction(radius) * LEVELS) ** 2)  # exact: a sum of squares may not exceed it
    scaled = LEVELS * delta_CHW.reshape(-1).astype(np.float64)
    scaled *= min(1.0, math.sqrt(most) / max(float(np.linalg.norm(scaled)), 1e-300))
    for share in np.linspace(1, 0, 201):
        moved = np.clip(levels + np.rint(share * scaled).astype(np.int64), 0, LEVELS)
        squares = int(((moved - levels) ** 2).sum())
        if squares <= most:
            break
    height_width_last = np.moveaxis(moved.astype(np.uint8).reshape(image_CHW.shape), 0, 2)
    return to_unit_floats(height_width_last[None])[0], math.sqrt(squares) / LEVELS
