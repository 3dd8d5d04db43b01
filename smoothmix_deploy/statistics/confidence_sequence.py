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
    """The largest p found below the maximum of the likelihood at which it is under `threshold`; 0 if there is none."""
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / (successes + failures)
    for _ in range(60):
        middle = (low + high) / 2
        if successes * math.log(middle) + failures * math.log1p(-middle) < threshold:
            low = middle
        else:
            high = middle
    return low
