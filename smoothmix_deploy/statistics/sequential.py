"""Exact group-sequential tests of a binomial proportion: boundaries by dynamic programming.

A test looks at the count S of successes after t_1 < ... < t_K trials and stops when S >= U_i. The boundaries are the
lowest whose crossing probability, computed exactly, stays below an error spent gradually over the looks (Lan and
DeMets 1983, "Discrete sequential boundaries for clinical trials"). Pure functions of numbers; knows nothing of images.

Rounding is always against the claim. Of the error, one millionth is kept back (`RESERVE`): it pays for the mass that
the dynamic programme leaves out (bounded by Bernstein's inequality) and for floating point. All terms are positive and
added up directly, so each step's relative error is below 5 m 2^-53 for sums of m terms; with 10^9 trials, whose
distribution is 3 * 10^5 wide, 300 looks come to under 10^-7. A convolution by FFT would have an absolute error instead,
which can exceed a small alpha.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import special

RESERVE = 1e-6


def geometric_looks(first: int, ratio: float, n: int) -> tuple[int, ...]:
    """Sample numbers `first`, `first * ratio`, ... (rounded up, all different), ending with `n`."""
    looks, exact = [], float(first)
    while exact < n:
        look = math.ceil(exact)
        looks.append(look)
        exact = max(exact * ratio, look + 1.0)
    if len(looks) > 1 and n - looks[-1] < (looks[-1] - looks[-2]) / 2:
        looks.pop()  # no look right before the last one
    return (*looks, n)


def probability_above(radius: float, sigma: float) -> float:
    """`Phi(radius / sigma)` rounded up: a class of larger probability is certified at `radius` (Cohen et al., eq. 3)."""
    return min(float(special.ndtr(radius / sigma)) * (1 + 1e-12), math.nextafter(1.0, 0.0))


def spent_by(t: int, n: int, scale: float, kept: float = 0.0) -> float:
    """The share of the error that may be spent by sample t of n: `(1 - kept) log(1 + t/scale) / log(1 + n/scale)`, and all
    of it at n."""
    return min(1.0, (1 - kept) * math.log1p(t / scale) / math.log1p(n / scale)) if t < n else 1.0


@lru_cache(maxsize=4096)
def upper_boundary(p0: float, error: float, looks: tuple[int, ...], scale: float, kept: float = 0.0) -> tuple[int, ...]:
    """U_i, one a look: P[S >= U_i at any look] <= `error` for every p <= p0. U_i = t_i + 1: cannot be reached.

    Larger p0 gives stochastically larger counts, so p0 is the worst case of p <= p0. Nothing is absorbed at a lower
    boundary: going on past one stays valid.
    """
    assert 0 < p0 < 1
    assert 0 < error < 1
    left_out = error * RESERVE / (4 * len(looks))
    budget = error * (1 - RESERVE)
    mass, low = np.ones(1), 0  # mass[k]: probability of low + k successes without having crossed
    used, before, upper = 0.0, 0, []
    for t in looks:
        step, step_low = _binomial(t - before, p0, left_out)
        mass, low, before = np.convolve(mass, step), low + step_low, t
        tail = np.append(np.cumsum(mass[::-1])[::-1], 0.0)
        cut = int(np.argmax(used + tail <= budget * spent_by(t, looks[-1], scale, kept)))
        upper.append(min(low + cut, t + 1))
        used += float(tail[cut])
        mass = mass[:cut]
        dropped = int(np.searchsorted(np.cumsum(mass), left_out, side="right"))
        mass, low = mass[dropped:], low + dropped
        assert len(mass), "an error below 1/2 leaves some mass"
    return tuple(upper)


def lower_boundary(p0: float, error: float, looks: tuple[int, ...], scale: float, kept: float = 0.0) -> tuple[int, ...]:
    """L_i, one a look: P[S <= L_i at any look] <= `error` for every p >= p0. L_i = -1: cannot be reached.

    The mirror image of the upper boundary: failures with probability 1 - p0 (exact for p0 >= 1/2).
    """
    return tuple(t - u for t, u in zip(looks, upper_boundary(1 - p0, error, looks, scale, kept), strict=True))


def _binomial(n: int, p: float, left_out: float) -> tuple[np.ndarray, int]:
    """(probabilities, first count) of Binomial(n, p) without tails of at most `left_out` together; they sum to one.

    By the recurrence between neighbours, outwards from the mode: products of positive numbers, at most 3 roundings a
    factor, whereas library functions make no promise about the relative error far from the mode.
    """
    log_term = math.log(2 / left_out)  # Bernstein: P[|X - np| > w] <= 2 exp(-w^2 / (2 (np(1-p) + w/3)))
    width = log_term / 3 + math.sqrt(log_term**2 / 9 + 2 * n * p * (1 - p) * log_term)
    first, last = max(0, math.floor(n * p - width)), min(n, math.ceil(n * p + width))
    mode = min(max(math.floor((n + 1) * p), first), last)
    odds = p / (1 - p)
    k = np.arange(mode, last, dtype=float)
    up = np.cumprod((n - k) / (k + 1) * odds)
    k = np.arange(mode, first, -1, dtype=float)
    down = np.cumprod(k / ((n - k + 1) * odds))
    probabilities = np.concatenate([down[::-1], [1.0], up])
    return probabilities / probabilities.sum(), first


def information_bound(q: float, p0: float, alpha: float, beta: float) -> float:
    """No test that errs at most alpha at p <= p0 and gives up at most beta beyond needs fewer samples at q, on average.

    Wald 1945: `d(1 - beta, alpha) / d(q, p0)` where q > p0, `d(1 - alpha, beta) / d(q, p0)` where q < p0.
    """
    if q == p0:
        return math.inf
    first, second = (1 - beta, alpha) if q > p0 else (1 - alpha, beta)
    return _divergence(first, second) / _divergence(q, p0)


def _divergence(a: float, b: float) -> float:
    return float(special.rel_entr(a, b) + special.rel_entr(1 - a, 1 - b))
