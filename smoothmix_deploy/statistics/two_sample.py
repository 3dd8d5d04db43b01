"""Could two sets of votes come from one classifier? Exact tests, conditional on what both sets have together.

Given their sum, how two counts of equal probability share it is hypergeometric, whatever the probability (Fisher 1935).
Votes for several classes are multivariate hypergeometric, given every class's sum; so tests of single classes, and the
choice of classes by these sums, need only be corrected for their number (Bonferroni). Pure functions of counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Pair = tuple[int, int, int]
"""(first count, second count, samples of each)."""

_NEGLIGIBLE = 1e-30


def equal_p_value(first: int, second: int, samples: int) -> float:
    """Two-sided: are `first` and `second`, each of `samples`, counts of one probability? Fisher's exact test.

    With as many samples on both sides the distribution is symmetric: twice the tail.
    """
    mass, low = _shares(first + second, samples)
    return min(1.0, 2 * float(mass[max(first, second) - low :].sum()))


def excess_p_value(pairs: Sequence[Pair]) -> float:
    """One-sided, over independent pairs with a probability each: are the first counts, added up, too high?

    P[sum of first counts >= the one seen], given each pair's sum: the distribution of a sum of hypergeometric counts,
    by convolution (the exact form of Cochran, Mantel and Haenszel's test). Single terms below 1e-30 are left out and
    added to the result as a whole. It finds a small excess in every pair that no pair's own test would.
    """
    mass, low, left_out = np.ones(1), 0, 0.0
    for first, second, samples in pairs:
        shares, share_low = _shares(first + second, samples)
        kept = np.flatnonzero(shares > _NEGLIGIBLE)
        left_out += _NEGLIGIBLE * (len(shares) - len(kept))
        mass = np.convolve(mass, shares[kept[0] : kept[-1] + 1])
        low += share_low + int(kept[0])
    seen = sum(first for first, _, _ in pairs)
    return min(1.0, float(mass[max(0, seen - low) :].sum()) + left_out)


def _shares(total: int, samples: int) -> tuple[np.ndarray, int]:
    """(P[first = k] given first + second = total, for all possible k; the lowest k).

    By the recurrence between neighbours, outwards from the mode: products of positive numbers.
    """
    low, high = max(0, total - samples), min(total, samples)
    mode = total // 2
    k = np.arange(mode, high, dtype=float)
    up = np.cumprod((total - k) * (samples - k) / ((k + 1) * (samples - total + k + 1)))
    k = np.arange(mode, low, -1, dtype=float)
    down = np.cumprod(k * (samples - total + k) / ((total - k + 1) * (samples - k + 1)))
    mass = np.concatenate([down[::-1], [1.0], up])
    return mass / mass.sum(), low


def votes_p_value(first: dict[int, int], second: dict[int, int], samples: int) -> float:
    """Two-sided: are these the votes, by class, of one classifier? Votes for no class are one more class.

    The smaller of two p-values, doubled: that of the class that both together voted for most, which decides over
    radius and prediction, and the smallest of all others times their number.
    """
    none = -1
    first = {**first, none: samples - sum(first.values())}
    second = {**second, none: samples - sum(second.values())}
    together = {k: first.get(k, 0) + second.get(k, 0) for k in {*first, *second}}
    together = {k: votes for k, votes in together.items() if votes}
    top = min(together, key=lambda k: (-together[k], k))
    p = {k: equal_p_value(first.get(k, 0), second.get(k, 0), samples) for k in together}
    others = [value for k, value in p.items() if k != top]
    return min(1.0, 2 * min([p[top], *(value * len(others) for value in others)]))
