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
    """Two-sided: are `first` and `second`, each of `samples`, counts of one probability? (Fisher's exact test.)"""
    from scipy import stats

    return float(stats.fisher_exact([[first, samples - first], [second, samples - second]])[1])


def excess_p_value(pairs: Sequence[Pair]) -> float:
    """One-sided, over independent pairs with a probability each: are the first counts, added up, too high?

    P[sum of first counts >= the one seen], given each pair's sum: the distribution of a sum of hypergeometric counts,
    by convolution (the exact form of Cochran, Mantel and Haenszel's test). Single terms below 1e-30 are left out and
    added to the result as a whole. It finds a small excess in every pair that no pair's own test would.
    """
    from scipy import stats

    mass, low, left_out = np.ones(1), 0, 0.0
    for first, second, samples in pairs:
        total = first + second
        k = np.arange(max(0, total - samples), min(total, samples) + 1)
        probability = stats.hypergeom.pmf(k, 2 * samples, total, samples)
        kept = np.flatnonzero(probability > _NEGLIGIBLE)
        left_out += _NEGLIGIBLE * len(k)
        mass = np.convolve(mass, probability[kept[0] : kept[-1] + 1])
        low += int(k[kept[0]])
    seen = sum(first for first, _, _ in pairs)
    return min(1.0, float(mass[max(0, seen - low) :].sum()) + left_out)


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
