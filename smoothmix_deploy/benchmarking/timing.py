"""Timing a call: warm-up, enough repetitions, percentiles with exact confidence intervals, and whether to believe it.

The rules are in the spirit of MLPerf Inference: a least duration and a least number of runs; percentiles of single runs,
never of means; and a verdict on stability, with repetition before a figure is flagged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

WARM_UP_SECONDS, LEAST_SECONDS, LEAST_ITERATIONS = 0.2, 3.0, 10
CONFIDENCE = 0.95
UNSTABLE = 0.10
"""A fifth of the runs whose median is this far from the whole's makes a measurement unstable."""
_BLOCKS, _TRIES = 5, 3


@dataclass(frozen=True)
class Timing:
    """Durations of single calls, ms, in the order they were made."""

    times_ms: np.ndarray
    stable: bool
    tries: int
    """How often it was measured until it was stable, or given up."""

    def percentile(self, q: float) -> float:
        """ms; `q` in 0 .. 100."""
        return float(np.percentile(self.times_ms, q))

    def interval(self, q: float) -> tuple[float, float] | None:
        """See `percentile_interval`."""
        return percentile_interval(self.times_ms, q, CONFIDENCE)


def time_calls(call: Callable[[], object], seconds: float = LEAST_SECONDS) -> Timing:
    """Warm up for 200 ms, then time single calls for at least `seconds` and 10 calls; up to three times until stable."""
    _run_for(call, WARM_UP_SECONDS, 1)
    tries, stable = 0, False
    while not stable and tries < _TRIES:
        times = _run_for(call, seconds, LEAST_ITERATIONS)
        tries, stable = tries + 1, is_stable(times)
    return Timing(times * 1e3, stable, tries)


def is_stable(times: np.ndarray) -> bool:
    """Whether the medians of all fifths of the runs are within 10 % of the median of all."""
    middle = np.median(times)
    return all(abs(np.median(block) - middle) <= UNSTABLE * middle for block in np.array_split(times, _BLOCKS))


def percentile_interval(values: np.ndarray, q: float, confidence: float) -> tuple[float, float] | None:
    """Two order statistics that hold the true percentile with at least `confidence`; None if there are too few values.

    The number of values below the true q-th percentile is binomial (n, q/100), whatever the distribution: exact, no
    normal approximation (e.g. Hahn and Meeker, Statistical Intervals, section 5.2). 0-based ranks (low, high).
    """
    n, ordered = len(values), np.sort(values)
    tail = (1 - confidence) / 2
    below = stats.binom(n, q / 100)
    low = int(below.ppf(tail)) - 1  # P[count <= low] < tail
    high = int(below.ppf(1 - tail))  # P[count > high] <= tail
    if low < 0 or high >= n:
        return None
    return float(ordered[low]), float(ordered[high])


def _run_for(call: Callable[[], object], seconds: float, least: int) -> np.ndarray:
    times: list[float] = []
    begin = clock = time.perf_counter()
    while len(times) < least or clock - begin < seconds:
        call()
        now = time.perf_counter()
        times.append(now - clock)
        clock = now
    return np.array(times)
