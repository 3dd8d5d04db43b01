"""Integer thresholds that turn a uniform 64-bit integer into a Gaussian on the pixel grid (Voracek and Hein 2023).

Noise of level sigma, rounded to multiples of 1/255, is m/255 with probability
Phi((2m+1)/(510 sigma)) - Phi((2m-1)/(510 sigma)) (arXiv 2207.07209, section 4). A uniform U in 0 .. 2^64 - 1 gives
m = -K + #{thresholds <= U}. Computed in integers alone, from the exact rational value of sigma: the same on every
machine, each within 2^-65 (1 + 2^-40) of the true probability. Knows nothing about images or random numbers.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from itertools import count
from math import isqrt

import numpy as np

from ..errors import BadInput

LARGEST_SIGMA = 12.0
"""Noise and pixels together must fit into 16 bits."""

_BITS = 192  # of the fixed-point fractions below


@lru_cache(maxsize=8)
def thresholds(sigma: float) -> np.ndarray:
    """uint64 [2 K], ascending; BadInput where K would not fit into 16 bits."""
    half = [_tail_of_step(m, sigma) for m in range(1, largest_step(sigma) + 1)]
    found = np.array(half[::-1] + [2**64 - tail for tail in half], np.uint64)
    found.flags.writeable = False
    return found


@lru_cache(maxsize=64)
def largest_step(sigma: float) -> int:
    """K: the largest m whose tail, P[noise >= m/255], does not round to 0 in units of 2^-64 (about 9.2 * 255 sigma)."""
    if not 0 < sigma <= LARGEST_SIGMA:
        raise BadInput(f"--sigma {sigma}: --noise grid needs a sigma in (0, {LARGEST_SIGMA:g}]; use --noise gaussian")
    low, high = 0, 1 + int(255 * 9.3 * sigma) + 1  # the tail of 9.3 sigma is below 2^-66
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _tail_of_step(middle, sigma) else (low, middle)
    return low


def _tail_of_step(m: int, sigma: float) -> int:
    return normal_tail(Fraction(2 * m - 1) / (510 * Fraction(sigma)))


def normal_tail(x: Fraction) -> int:
    """2^64 * (1 - Phi(x)) for x >= 0, rounded to the nearest integer.

    1 - Phi(x) = 1/2 - (2 pi)^(-1/2) * sum of (-1)^n x^(2n+1) / (2^n n! (2n+1)). In fixed point with 192 bits every
    operation errs by at most 2^-192, which the terms amplify by no more than exp(x^2/2) < 2^66 and their number, under
    2^9, adds up: the error before rounding is below 2^-110.
    """
    if x > 9.5:
        return 0  # below 2^-68
    term = (x.numerator << _BITS) // x.denominator
    square, total = term * term >> _BITS, 0
    for n in count(1):
        if not term:
            break
        total += (-term if n % 2 == 0 else term) // (2 * n - 1)
        term = (term * square >> _BITS) // (2 * n)
    tail = (1 << _BITS - 1) - (total * _one_over_root_two_pi() >> _BITS)
    return (tail >> _BITS - 65) + 1 >> 1


@lru_cache(maxsize=1)
def _one_over_root_two_pi() -> int:
    return isqrt((1 << 3 * _BITS) // (2 * _pi()))


def _pi() -> int:
    """Machin 1706: 16 arctan(1/5) - 4 arctan(1/239), with 64 guard bits."""
    one = 1 << _BITS + 64

    def arctan_of_inverse(n: int) -> int:
        power, total = one // n, 0
        for k in count(0):
            if not power:
                return total
            total += (-power if k % 2 else power) // (2 * k + 1)
            power //= n * n
        raise AssertionError

    return (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> 64
