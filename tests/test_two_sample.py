"""The tests that tell whether two sets of votes come from one classifier: their level and their power."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from smoothmix_deploy.certification.rerun import RERUN_ALPHA
from smoothmix_deploy.statistics.two_sample import equal_p_value, excess_p_value, votes_p_value


def hypergeometric(total, samples):
    """P[first = k | first + second = total], exact."""
    return {
        k: Fraction(comb(samples, k) * comb(samples, total - k), comb(2 * samples, total))
        for k in range(max(0, total - samples), min(total, samples) + 1)
    }


def test_excess_by_enumeration():
    """Three small pairs, every table."""
    pairs = [(5, 2, 6), (4, 4, 9), (7, 3, 7)]
    exact = Fraction(0)
    tables = [hypergeometric(a + b, n) for a, b, n in pairs]
    for firsts in itertools.product(*tables):
        if sum(firsts) >= sum(a for a, _, _ in pairs):
            exact += np.prod([table[k] for table, k in zip(tables, firsts, strict=True)])
    assert excess_p_value(pairs) == pytest.approx(float(exact), rel=1e-9)
    assert excess_p_value([]) == 1.0
    assert excess_p_value([(0, 10, 10)]) == pytest.approx(1)


def test_fisher_by_enumeration():
    """All tables of small samples: the probability of those that are at most as probable."""
    for n in (1, 2, 5, 9):
        for a, b in itertools.product(range(n + 1), repeat=2):
            table = hypergeometric(a + b, n)
            exact = sum(p for p in table.values() if p <= table[a])
            assert equal_p_value(a, b, n) == pytest.approx(float(exact), rel=1e-9)


def test_level_of_excess_is_exact():
    """Given the sums, P[p-value <= level] <= level at every level, summed over every table."""
    tables = [hypergeometric(7, 8), hypergeometric(5, 6)]
    found = sorted(
        (excess_p_value([(j, 7 - j, 8), (k, 5 - k, 6)]), float(p * q))
        for (j, p), (k, q) in itertools.product(*(table.items() for table in tables))
    )
    mass = np.cumsum([probability for _, probability in found])
    assert all(below <= p * (1 + 1e-9) for (p, _), below in zip(found, mass, strict=True) if p < 1)


def test_level_of_votes_is_exact():
    """Three classes and votes for none, all tables with these sums: the multivariate hypergeometric distribution."""
    samples, together = 6, (5, 3, 2, 2)
    found = []
    for first in itertools.product(*(range(t + 1) for t in together)):
        if sum(first) == samples:
            weight = np.prod([comb(t, k) for t, k in zip(together, first, strict=True)]) / comb(12, samples)
            second = [t - k for t, k in zip(together, first, strict=True)]
            p = votes_p_value(dict(enumerate(first[:3])), dict(enumerate(second[:3])), samples)
            found.append((p, weight))
    found.sort()
    mass = np.cumsum([weight for _, weight in found])
    assert mass[-1] == pytest.approx(1)
    assert all(below <= p * (1 + 1e-9) for (p, _), below in zip(found, mass, strict=True) if p < 1)
    assert found[0][0] < 0.2


def test_votes_of_one_classifier_and_of_two():
    """Equal votes are consistent; so are unanimous ones; others are found whatever class differs."""
    votes = {0: 900, 1: 60, 2: 30}
    assert votes_p_value(votes, votes, 1000) == 1.0
    assert votes_p_value({3: 100}, {3: 100}, 100) == 1.0
    assert votes_p_value({}, {}, 100) == 1.0
    assert votes_p_value(votes, {0: 800, 1: 130, 2: 60}, 1000) < 1e-8
    assert votes_p_value(votes, {0: 900, 1: 90}, 1000) < 1e-6  # a class without votes
    assert votes_p_value(votes, {0: 900, 1: 0, 2: 30}, 1000) < 1e-12  # its votes went to none


def test_other_classes_cost_nothing():
    """A thousand classes without votes do not weaken the test of those that have some."""
    assert votes_p_value({0: 90}, {0: 60, 1: 30}, 90) == votes_p_value({0: 90, 999: 0}, {0: 60, 1: 30, 500: 0}, 90)


def test_small_excess_everywhere_is_found_by_all_images_together():
    """1.5 % more votes than there were on each of 20 images: no image's own test sees it."""
    rng, n = np.random.default_rng(0), 10_000
    p = rng.uniform(0.7, 0.95, 20)
    pairs = [(int(a) + 150, int(b), n) for a, b in zip(rng.binomial(n, p), rng.binomial(n, p), strict=True)]
    alone = [equal_p_value(*pair) for pair in pairs]
    assert sum(value < RERUN_ALPHA / 4 / len(pairs) for value in alone) < 5
    assert excess_p_value(pairs) < 1e-20
    assert excess_p_value([(a - 150, b, n) for a, b, _ in pairs]) > RERUN_ALPHA


def test_large_samples():
    """100,000 samples an image, as in published tables: exact terms, in moderate time, none negative or above one."""
    n = 100_000
    assert 0.4 < excess_p_value([(90_000, 90_000, n)] * 20) < 0.6
    assert 0 < excess_p_value([(90_500, 90_000, n)] * 20) < 1e-10
    assert excess_p_value([(90_500, 90_000, n)]) == pytest.approx(equal_p_value(90_500, 90_000, n) / 2, rel=0.01)
