"""The bounds hold exactly: enumeration in rational arithmetic, not simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from smoothmix_deploy.statistics.bounds import (
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    fewest_samples,
    largest_radius,
    top_two_p_value,
)


def exact_upper_tail(k, n, p):
    """P[Binomial(n, p) >= k], exactly."""
    p = Fraction(p)
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize("n", [1, 2, 5, 17, 40])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_lower_bound_is_sound_in_exact_arithmetic(n, alpha):
    """At the bound, so many successes have probability <= alpha, to the last bit; and the bound is not wasteful."""
    for k in range(1, n + 1):
        bound = clopper_pearson_lower(k, n, alpha)
        assert exact_upper_tail(k, n, bound) <= Fraction(alpha)
        assert exact_upper_tail(k, n, bound * (1 + 1e-11)) > Fraction(alpha)


@pytest.mark.parametrize(("n", "alpha"), [(10, 0.05), (100, 0.001), (1000, 0.001)])
def test_coverage_by_enumeration(n, alpha):
    """P[bound > p] <= alpha at every p where it could be worst: just below each possible bound."""
    bounds = np.array([clopper_pearson_lower(k, n, alpha) for k in range(n + 1)])
    worst = 0.0
    for p in np.nextafter(bounds[1:], 0):
        error = stats.binom.pmf(np.arange(n + 1), n, p)[bounds > p].sum()
        worst = max(worst, error)
    assert worst <= alpha * (1 + 1e-9)
    assert worst > 0.9 * alpha  # the enumeration does find the worst case


def test_wilson_interval_fails_the_same_enumeration():
    """The check can fail: a popular approximate bound does not cover."""
    n, alpha = 100, 0.001
    z = stats.norm.ppf(1 - alpha)
    share = np.arange(n + 1) / n
    centre, spread = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    bounds = (centre - spread) / (1 + z * z / n)
    errors = [stats.binom.pmf(np.arange(n + 1), n, p)[bounds > p].sum() for p in np.nextafter(bounds[1:], 0)]
    assert max(errors) > 2 * alpha


def test_upper_bound_mirrors_the_lower():
    """The upper bound covers from above, exactly."""
    n, alpha = 30, 0.01
    for k in range(n):
        bound = clopper_pearson_upper(k, n, alpha)
        assert exact_upper_tail(n - k, n, 1 - Fraction(bound)) <= Fraction(alpha) * (1 + Fraction(1, 10**9))
    assert clopper_pearson_upper(n, n, alpha) == 1.0


def test_against_an_independent_implementation():
    """SciPy's own exact binomial interval (root finding, no beta function) at the protocol of the published tables."""
    for k in (50_200, 75_000, 99_000, 99_990, 100_000):
        interval = stats.binomtest(k, 100_000, alternative="greater").proportion_ci(0.999, method="exact")
        assert clopper_pearson_lower(k, 100_000, 0.001) == pytest.approx(interval.low, rel=1e-9)


def test_radius():
    """sigma * ppf(p); nothing below one half."""
    assert certified_radius(0.5, 1.0) == 0.0
    assert certified_radius(0.2, 1.0) == 0.0
    assert certified_radius(stats.norm.cdf(1.5), 0.5) == pytest.approx(0.75)


def test_largest_radius_and_fewest_samples():
    """3.81 sigma at the usual protocol; fewer than ten samples prove nothing at alpha = 0.001."""
    assert largest_radius(100_000, 0.001, 1.0) == pytest.approx(3.81, abs=0.005)
    assert fewest_samples(0.001) == 10
    assert largest_radius(9, 0.001, 1.0) == 0.0
    assert largest_radius(10, 0.001, 1.0) > 0.0
    for alpha in (0.4, 0.05, 1e-6):
        n = fewest_samples(alpha)
        assert largest_radius(n, alpha, 1.0) > 0
        assert n == 1 or largest_radius(n - 1, alpha, 1.0) == 0


def test_top_two():
    """The two-sided test of PREDICT, by enumeration."""
    exact = sum(math.comb(20, i) for i in range(21) if math.comb(20, i) <= math.comb(20, 16)) / 2**20
    assert top_two_p_value(16, 4) == pytest.approx(exact)
    assert top_two_p_value(0, 0) == 1.0


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 10, 0.1), (11, 10, 0.1), (0, 0, 0.1), (1, 2, 0.0), (1, 2, 1.0)])
def test_impossible_arguments(k, n, alpha):
    """ValueError, not a number."""
    with pytest.raises(ValueError, match="must"):
        clopper_pearson_lower(k, n, alpha)
