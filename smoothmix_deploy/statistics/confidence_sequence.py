"""A confidence sequence for a binomial proportion: an interval that holds at every sample number together.

The beta-binomial (Krichevsky-Trofimov) mixture with Ville's inequality: with H successes in t trials, p is kept while
`H log p + (t - H) log(1 - p) >= LOGQ - log(1 / alpha)`, `LOGQ = lnB(H + 1/2, t - H + 1/2) - lnB(1/2, 1/2)`. The true p
is lost at any time at all with probability alpha at most, so any stopping rule is sound. Rounding is outwards.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import special

_LN_B_HALF = math.log(math.pi)  # lnB(1/2, 1/2)


@lru_cache(maxsize=1 << 16)
def confidence_interval(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """(lower, upper) end after `trials`; both hold, at all trials together, with probability >= 1 - alpha."""
    failures = trials - successes
    log_q = float(special.betaln(successes + 0.5, failures + 0.5)) - _LN_B_HALF
    # The logarithms' relative error is far below 1e-12; lowering the threshold widens the interval.
    threshold = log_q + math.log(alpha) - 1e-12 * (abs(log_q) + trials)
    lower = _end(successes, failures, threshold)
    upper = 1.0 - _end(failures, successes, threshold)
    return lower * (1 - 1e-12), upper


def _end(successes: int, failures: int, threshold: float) -> float:
    """A p below the maximum of the log-likelihood at which it is under `threshold`, next to the largest one.

    Newton's method in log p. The log-likelihood is concave in it, so every tangent lies above it and every step ends where
    it is under the threshold, from below the maximum: after the first one they only go up.
    """
    if successes == 0:
        return 0.0
    best = successes / (successes + failures)
    log_p = math.log(0.5 * best)
    for _ in range(100):
        p = math.exp(log_p)
        excess = threshold - (successes * log_p + failures * math.log1p(-p))
        step = excess / (successes - failures * p / (1 - p))
        log_p += step
        if abs(step) < 1e-14 * (1 - log_p):
            break
    p = math.exp(log_p)
    while p > 0 and successes * math.log(p) + failures * math.log1p(-p) >= threshold:
        p *= 1 - 1e-15  # rounding
    return p
