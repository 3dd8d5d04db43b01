"""Percentile intervals are exact, and unstable measurements are called so."""

import numpy as np
import pytest
from scipy import stats

from smoothmix_deploy.benchmarking import timing
from smoothmix_deploy.benchmarking.timing import is_stable, percentile_interval, time_calls


@pytest.mark.parametrize(("n", "q"), [(10, 50), (59, 90), (100, 95), (500, 99), (2000, 99)])
def test_interval_covers_the_percentile(n, q):
    """Exactly: values are ranks 0 .. n - 1, and the number below the true percentile is binomial."""
    found = percentile_interval(np.arange(n), q, 0.95)
    assert found is not None
    low, high = map(int, found)
    # The percentile lies above the value of rank `low` if more than `low` values are below it, and at or below `high`
    # if no more than `high` are.
    below = stats.binom(n, q / 100)
    assert below.cdf(high) - below.cdf(low) >= 0.95
    assert below.cdf(low) <= 0.025
    assert below.sf(high) <= 0.025


def test_too_few_runs_have_no_interval():
    """The 99th percentile of 100 runs is known from below only."""
    assert percentile_interval(np.arange(100), 99, 0.95) is None
    assert percentile_interval(np.arange(5), 50, 0.95) is None


def test_stability():
    """A drift or a slow stretch is seen; a few stragglers are not a drift."""
    rng = np.random.default_rng(0)
    steady = 1 + 0.01 * rng.standard_normal(100)
    assert is_stable(steady)
    stragglers = steady.copy()
    stragglers[::17] *= 5
    assert is_stable(stragglers)
    assert not is_stable(np.linspace(1, 1.5, 100))
    assert not is_stable(np.r_[np.ones(80), np.full(20, 1.3)])


def test_unstable_measurements_are_repeated_and_flagged(monkeypatch):
    """Three tries, then the flag."""
    monkeypatch.setattr(timing, "is_stable", lambda times: False)
    found = time_calls(lambda: None, 0.001)
    assert (found.stable, found.tries) == (False, 3)
    assert len(found.times_ms) >= 10
