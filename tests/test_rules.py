"""Stopping rules never spend more than alpha: exact error by dynamic programming over counts, not simulation.

The dynamic programme here shares nothing with the one that makes the boundaries: it asks a rule's own `decide` at every
reachable count and adds up binomial probabilities from SciPy.
"""

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import smoothmix_deploy as smx
from smoothmix_deploy.rules import Verdict, make_rule, parameters_from_options
from smoothmix_deploy.rules.boundaries import Boundaries, Schedule
from smoothmix_deploy.statistics.bounds import certified_radius, clopper_pearson_lower
from smoothmix_deploy.statistics.confidence_sequence import confidence_interval
from smoothmix_deploy.statistics.sequential import (
    geometric_looks,
    information_bound,
    lower_boundary,
    probability_above,
    spent_by,
    upper_boundary,
)

SIGMA = 0.5
SELECTION = np.array([100, 0])


class NaiveRule:
    """Clopper-Pearson at alpha, again and again until it certifies: what one must not do."""

    def __init__(self, radius, n, alpha):
        self.radius, self.alpha, self.looks = radius, alpha, geometric_looks(8, 1.1, n)

    def decide(self, selection_K, counts_K, drawn):
        """As soon as the bound suffices."""
        bound = clopper_pearson_lower(int(counts_K[0]), drawn, self.alpha)
        if certified_radius(bound, SIGMA) >= self.radius:
            return Verdict(0, self.radius, bound)
        return Verdict(-1, 0.0, 0.0) if drawn == self.looks[-1] else None


def answers(rule):
    """At every look, for every count: whether sampling ends, and the certified radius (-1: none)."""
    table = []
    for t in rule.looks:
        verdicts = [rule.decide(SELECTION, np.array([k, t - k]), t) for k in range(t + 1)]
        table.append(
            (
                np.array([v is not None for v in verdicts]),
                np.array([-1.0 if v is None or v.prediction == -1 else v.radius for v in verdicts]),
            )
        )
    return table


def play(rule, p, table, *, ignore_futility=False):
    """(P[certified at more than true], mean samples, total probability) at success probability p."""
    true_radius = SIGMA * stats.norm.ppf(p)
    alive, before, false, mean, total = np.ones(1), 0, 0.0, 0.0, 0.0
    for t, (ended, radius) in zip(rule.looks, table, strict=True):
        alive = np.convolve(alive, stats.binom.pmf(np.arange(t - before + 1), t - before, p))
        before = t
        stop = ended & ((radius >= 0) | (not ignore_futility) | (t == rule.looks[-1]))
        wrong = stop & (radius >= 0) & ((radius > true_radius) | (p <= 0.5))
        false += alive[wrong].sum()
        mean += t * alive[stop].sum()
        total += alive[stop].sum()
        alive = np.where(stop, 0.0, alive)
    return false, mean, total


CASES = {
    "radius": ("radius", {"radius": 0.4}),
    "radius 0": ("radius", {"radius": 0.0}),
    "radius, few looks": ("radius", {"radius": 0.4, "first_look": 50, "look_ratio": 2.0}),
    "grid": ("grid", {"grid": 0.1}),
    "grid, fine": ("grid", {"grid": 0.013}),
    "anytime": ("anytime", {"tolerance": 0.2}),
}


@cache
def case(name, n=400, alpha=0.01):
    kind, parameters = CASES[name]
    rule = make_rule(kind, sigma=SIGMA, n=n, alpha=alpha, **parameters)
    return rule, answers(rule)


def probabilities(rule):
    """A dense set, with every place where the error could be largest: just below what makes a radius true."""
    edges = [probability_above(r, SIGMA) for r in getattr(rule, "radii", [])]
    return np.unique(np.concatenate([np.linspace(0.02, 0.995, 120), np.array(edges) - 1e-9]))


@pytest.mark.parametrize("ignore_futility", [False, True], ids=["", "past futility"])
@pytest.mark.parametrize("name", CASES)
def test_false_certificates_are_at_most_alpha(name, ignore_futility):
    """At every p, also for somebody who goes on where the rule gives up."""
    rule, table = case(name)
    errors = []
    for p in probabilities(rule):
        false, _, total = play(rule, p, table, ignore_futility=ignore_futility)
        assert total == pytest.approx(1)
        errors.append(false)
    assert max(errors) <= 0.01
    if name.startswith(("radius", "grid")):
        assert max(errors) > 0.004  # the error is used, not wasted


def test_naive_repetition_fails_the_same_test():
    """The check can fail: Clopper-Pearson, repeated until it certifies."""
    rule = NaiveRule(0.4, 400, 0.01)
    false, _, _ = play(rule, probability_above(0.4, SIGMA) - 1e-9, answers(rule))
    assert false > 2 * 0.01


@pytest.mark.parametrize("alpha", [0.3, 1e-3, 1e-9, 1e-40])
@pytest.mark.parametrize("p0", [0.5, 0.8, 0.999])
def test_boundaries_spend_as_planned(p0, alpha):
    """Crossing probability by time t, with SciPy's binomial distribution: at most what may be spent by then."""
    looks = geometric_looks(8, 1.1, 3000)
    upper = upper_boundary(p0, alpha, looks, 30.0)
    alive, before, crossed = np.ones(1), 0, 0.0
    for t, u in zip(looks, upper, strict=True):
        alive = np.convolve(alive, stats.binom.pmf(np.arange(t - before + 1), t - before, p0))
        before = t
        crossed += alive[u:].sum()
        alive[u:] = 0
        assert crossed <= alpha * spent_by(t, 3000, 30.0) * (1 + 1e-9)
        assert u == t + 1 or u > 0
    assert crossed > 0.5 * alpha or p0 == 0.999


def test_boundaries_are_as_low_as_they_may_be():
    """One count less at any look would spend more than planned by then (exact fractions are not needed: gaps are wide)."""
    looks, alpha, p0 = geometric_looks(8, 1.5, 200), 0.01, 0.7
    upper = upper_boundary(p0, alpha, looks, 30.0)
    alive, before, crossed = np.ones(1), 0, 0.0
    for t, u in zip(looks, upper, strict=True):
        alive = np.convolve(alive, stats.binom.pmf(np.arange(t - before + 1), t - before, p0))
        before = t
        assert crossed + alive[u - 1 :].sum() > alpha * spent_by(t, 200, 30.0) * (1 - 2e-6)
        crossed += alive[u:].sum()
        alive[u:] = 0


def test_error_at_the_usual_n():
    """n = 100,000 and alpha = 0.001, again by SciPy's distribution; nearly all of alpha is used."""
    looks, p0, alpha = geometric_looks(8, 1.1, 100_000), 0.9, 0.001
    upper = upper_boundary(p0, alpha, looks, 30.0)
    alive, low, before, crossed = np.ones(1), 0, 0, 0.0
    for t, u in zip(looks, upper, strict=True):
        centre, spread = (t - before) * p0, 12 * np.sqrt((t - before) * p0 * (1 - p0)) + 40
        k = np.arange(max(0, int(centre - spread)), min(t - before, int(centre + spread)) + 1)
        alive, low, before = np.convolve(alive, stats.binom.pmf(k, t - before, p0)), low + k[0], t
        crossed += alive[max(0, u - low) :].sum()
        alive = alive[: max(0, u - low)]
    assert 0.98 * alpha < crossed <= alpha


def test_lower_boundary_mirrors():
    """Giving up what is true has probability futility at most."""
    looks = geometric_looks(8, 1.1, 1000)
    lower = lower_boundary(0.8, 0.01, looks, 30.0)
    alive, before, crossed = np.ones(1), 0, 0.0
    for t, end in zip(looks, lower, strict=True):
        alive = np.convolve(alive, stats.binom.pmf(np.arange(t - before + 1), t - before, 0.8))
        before = t
        crossed += alive[: end + 1].sum()
        alive[: end + 1] = 0
    assert 0.005 < crossed <= 0.01


def test_known_values():
    """A single look is the one-sided binomial test; the spending function and the information bound by hand."""
    for p0, n, alpha in ((0.5, 10, 0.001), (0.5, 100, 0.05), (0.9, 1000, 0.001)):
        (u,) = upper_boundary(p0, alpha, (n,), 30.0)
        assert stats.binom.sf(u - 1, n, p0) <= alpha < stats.binom.sf(u - 2, n, p0)
    assert upper_boundary(0.5, 0.0009, (10,), 30.0) == (11,)  # 2^-10 > 0.0009: out of reach
    assert spent_by(30, 30, 30.0) == 1
    assert spent_by(30, 90, 30.0) == pytest.approx(0.5)
    assert spent_by(30, 90, 30.0, kept=0.5) == pytest.approx(0.25)
    assert spent_by(90, 90, 30.0, kept=0.5) == 1
    assert information_bound(0.9, 0.8, 0.001, 0.01) == pytest.approx(
        (0.99 * np.log(990) + 0.01 * np.log(0.01 / 0.999)) / (0.9 * np.log(9 / 8) + 0.1 * np.log(0.5))
    )
    assert probability_above(0.0, 1.0) >= 0.5


@given(n=st.integers(1, 10**7), first=st.integers(1, 1000), ratio=st.floats(1.01, 3))
def test_looks(n, first, ratio):
    """Increasing, ending with n, growing by no more than asked for."""
    looks = geometric_looks(first, ratio, n)
    assert looks[-1] == n
    assert looks[0] == min(first, n) or len(looks) == 1
    assert all(a < b <= max(1.6 * ratio * a, a + 2) for a, b in pairwise(looks))


@pytest.mark.parametrize("n", [400, 20_000])
@pytest.mark.parametrize("step", [0.25, 0.05, 0.01])
def test_grid_boundaries_are_nested(n, step):
    """A count that certifies a radius certifies every smaller one; what is given up at one is given up above."""
    rule = make_rule("grid", sigma=SIGMA, n=n, alpha=0.001, grid=step)
    b = rule.boundaries
    assert (np.diff(b.upper_RL, axis=0) >= 0).all()
    assert (np.diff(b.lower_RL, axis=0) >= 0).all()
    assert (b.upper_RL > b.lower_RL).all()
    # Making them so changes next to nothing: single counts, where rounding left two boundaries crossing.
    alone = np.array([upper_boundary(p, 0.001, b.looks, rule.spending, rule.kept) for p in b.p0])
    assert (b.upper_RL - alone).max() <= 1
    assert rule.largest_radius == rule.radii[-1] <= make_rule("fixed", sigma=SIGMA, n=n, alpha=0.001).largest_radius


def test_grid_radii_are_the_decimals():
    """0.3, not 3 * 0.1: `smx report --radii 0.3` must find it."""
    rule = make_rule("grid", sigma=SIGMA, n=100_000, alpha=0.001, grid=0.1)
    assert rule.radii[:8] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_grid_of_one_radius_agrees_with_radius():
    """On the same path the grid's certificate is at least what the single radius gives at its own stop."""
    rng = np.random.default_rng(0)
    grid = make_rule("grid", sigma=SIGMA, n=2000, alpha=0.001, grid=0.25)
    single = Boundaries([0.5], SIGMA, 0.001, 2000, Schedule(spending=grid.spending, kept=grid.kept))
    for p in rng.uniform(0.5, 1, 50):
        path = np.cumsum(rng.random(2000) < p)
        for t in grid.looks:
            verdict = grid.decide(SELECTION, np.array([path[t - 1], t - path[t - 1]]), t)
            assert (single.certified(path[t - 1], t) == 1) == (grid.boundaries.certified(path[t - 1], t) > 2)
            if verdict is not None:
                break


@pytest.mark.parametrize("name", CASES)
def test_samples_end_and_are_few(name):
    """An easy image ends at once, a hard one at n at the latest; on average fewer than n."""
    rule, table = case(name)
    for p in (0.02, 0.5, 0.7, 0.79, 0.98):
        _, mean, total = play(rule, p, table)
        assert total == pytest.approx(1)
        assert mean < 400 or (name.startswith("grid") and p > 0.02)  # cells too narrow for n
    if name == "radius":
        assert play(rule, 0.98, table)[1] < 60
        assert play(rule, 0.02, table)[1] < 12


def test_mean_samples_are_near_the_information_bound():
    """Exactly, at n = 20,000, where neither the cap nor rounding dominates: below 1.4 times Wald's bound."""
    rule = make_rule("radius", sigma=SIGMA, n=3000, alpha=0.001, radius=0.25)
    table = answers(rule)
    for p in (0.55, 0.8, 0.9):
        bound = information_bound(p, rule.boundaries.p0[0], 0.001, 0.01)
        assert bound < play(rule, p, table)[1] < 1.4 * bound


# The confidence sequence -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.05, 0.5, 0.77, 0.99])
def test_confidence_sequence_holds_at_all_times(p):
    """P[p below the lower end at any of 300 sample numbers] <= alpha, exactly; likewise above the upper end."""
    alpha = 0.02
    for side in (0, 1):
        alive, lost = np.ones(1), 0.0
        for t in range(1, 301):
            alive = np.convolve(alive, [1 - p, p])
            ends = np.array([confidence_interval(k, t, alpha)[side] for k in range(t + 1)])
            out = ends > p if side == 0 else ends < p
            lost += alive[out].sum()
            alive[out] = 0
        assert lost <= alpha
    assert lost > 0 or p == 0.99


def test_confidence_interval_by_hand():
    """Ends solve the mixture's equation, rounded outwards; the estimate is inside."""
    lower, upper = confidence_interval(90, 100, 0.001)
    log_q = stats.betabinom.logpmf(90, 100, 0.5, 0.5) - np.log(float(stats.binom.pmf(90, 100, 0.5)) * 2.0**100)
    for end in (lower, upper):
        assert 90 * np.log(end) + 10 * np.log1p(-end) == pytest.approx(log_q + np.log(0.001), abs=1e-6)
    assert lower < 0.9 < upper
    assert confidence_interval(0, 50, 0.001)[0] == 0.0
    assert confidence_interval(50, 50, 0.001)[1] == 1.0


# Two classes -------------------------------------------------------------------------------------------------------


@st.composite
def votes_of_an_image(draw):
    n = draw(st.integers(20, 20_000))
    shares = np.array(draw(st.lists(st.floats(0.001, 1), min_size=2, max_size=6)))
    counts = np.floor(n * shares / shares.sum() * draw(st.floats(0.9, 1))).astype(int)
    return n, counts


@given(votes_of_an_image(), st.sampled_from([0.05, 0.001]))
@settings(max_examples=300, deadline=None)
def test_two_class_is_never_below_fixed_at_half_alpha(image, alpha):
    """On every image; so against the fixed rule at alpha it can lose only what halving alpha costs."""
    n, counts = image
    two = make_rule("two-class", sigma=1.0, n=n, alpha=alpha)
    half = make_rule("fixed", sigma=1.0, n=n, alpha=alpha / 2)
    whole = make_rule("fixed", sigma=1.0, n=n, alpha=alpha)
    found, at_half, fixed = (rule.decide(counts, counts, n) for rule in (two, half, whole))
    assert found.radius >= at_half.radius * (1 - 1e-9)
    assert (found.prediction == at_half.prediction) or at_half.prediction == -1
    assert found.radius >= fixed.radius - 0.35  # at n = 20; at n = 100,000 the most is 0.03, see below
    assert found.radius <= two.largest_radius


def test_two_class_at_the_usual_n():
    """What it gains and loses at n = 100,000, alpha = 0.001, sigma = 1."""
    two, fixed = (make_rule(name, sigma=1.0, n=100_000, alpha=0.001) for name in ("two-class", "fixed"))

    def radii(*counts):
        return tuple(rule.decide(np.array(counts), np.array(counts), 100_000).radius for rule in (two, fixed))

    best, usual = radii(100_000, 0)
    assert 0 < usual - best < 0.03
    best, usual = radii(90_000, 10_000)
    assert 0 < usual - best < 0.002
    best, usual = radii(60_000, 10_000, 10_000, 10_000, 10_000)
    assert best > 3 * usual
    best, usual = radii(40_000, 20_000, 20_000, 20_000)
    assert best > 0 == usual
    best, usual = radii(40_000, 20_000)  # 40,000 votes for no class count against
    assert best == 0


def test_two_class_error_by_enumeration():
    """P[radius > true radius] <= alpha over a grid of three-class distributions, by enumerating all counts of n = 30."""
    n, alpha = 30, 0.05
    rule = make_rule("two-class", sigma=1.0, n=n, alpha=alpha)
    counts = np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])
    selection = np.array([1, 0, 0])
    radius = np.array([rule.decide(selection, c, n).radius for c in counts])
    for p in np.linspace(0.3, 0.98, 18):
        for share in (0.5, 0.7, 1.0):
            q = (1 - p) * share
            if q >= p:
                continue
            true = (stats.norm.ppf(p) - stats.norm.ppf(q)) / 2
            assert stats.multinomial.pmf(counts, n, [p, q, 1 - p - q])[radius > true].sum() <= alpha


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("fixed", {"radius": 0.5}, "--radius 0.5: goes with --rule radius"),
        ("radius", {}, "needs --radius"),
        ("radius", {"radius": 0.5, "grid": 0.1}, "--grid 0.1: goes with --rule grid"),
        ("grid", {"tolerance": 0.1}, "--tolerance 0.1: goes with --rule anytime"),
        ("anytime", {}, "needs --tolerance"),
        ("nope", {"radius": 1.0}, "known rules: fixed, two-class, radius, grid, anytime"),
    ],
)
def test_options_that_do_not_fit(rule, options, message):
    """One line that says which."""
    with pytest.raises(smx.BadInput, match=message):
        parameters_from_options(rule, **options)


@pytest.mark.parametrize(
    ("rule", "parameters", "message"),
    [
        ("radius", {"radius": 2.0}, "out of reach of --n 1000"),
        ("radius", {"radius": -1.0}, "must be a number >= 0"),
        ("radius", {"radius": float("nan")}, "expected a number"),
        ("radius", {"radius": "x"}, "expected a number"),
        ("radius", {"radius": 0.5, "look_ratio": 1.0}, "look_ratio"),
        ("radius", {"radius": 0.5, "first_look": 1.5}, "first_look"),
        ("radius", {"radius": 0.5, "futility": 0.7}, "futility"),
        ("grid", {"grid": 0.0}, "must be a positive number"),
        ("grid", {"grid": 1e-6}, "more than 500 radii"),
        ("anytime", {"tolerance": 0.0}, "must be a positive number"),
    ],
)
def test_parameters_out_of_range(rule, parameters, message):
    """Also from a manifest that somebody edited."""
    with pytest.raises(smx.BadInput, match=message):
        make_rule(rule, sigma=SIGMA, n=1000, alpha=0.001, **parameters)


def test_too_many_or_too_few_samples():
    """Boundaries for more than 10^7 samples would take minutes; nine votes prove nothing."""
    with pytest.raises(smx.BadInput, match="10,000,000"):
        make_rule("radius", sigma=SIGMA, n=10**8, alpha=0.001, radius=0.5)
    with pytest.raises(smx.BadInput, match="at least --n 11"):
        make_rule("grid", sigma=SIGMA, n=9, alpha=0.001, grid=0.25)
    assert make_rule("grid", sigma=SIGMA, n=11, alpha=0.001, grid=0.25).radii == [0.0]


@pytest.mark.parametrize("name", CASES)
def test_rules_are_made_again_from_their_record(name):
    """The manifest holds all that `smx verify` needs."""
    rule, _ = case(name)
    again = make_rule(rule.name, sigma=SIGMA, n=400, alpha=0.01, **json.loads(json.dumps(rule.parameters)))
    assert again == rule
    assert again.looks == rule.looks


@pytest.mark.parametrize("name", CASES)
def test_can_reach(name):
    """True of everything that happens; false where every way to the counts ends earlier."""
    rule, _ = case(name)
    rng = np.random.default_rng(1)
    for p in rng.uniform(0, 1, 100):
        path = np.cumsum(rng.random(400) < p)
        for t in rule.looks:
            counts = np.array([path[t - 1], t - path[t - 1]])
            if rule.decide(SELECTION, counts, t) is not None:
                assert rule.can_reach(SELECTION, counts, t)
                break
    nothing = np.zeros(2, int)
    assert rule.can_reach(nothing, nothing, rule.looks[0])
    assert not rule.can_reach(nothing, nothing, rule.looks[1])
    if name != "anytime":
        assert not rule.can_reach(SELECTION, np.array([0, 400]), 400)
    if name.startswith("radius"):
        assert not rule.can_reach(SELECTION, np.array([400, 0]), 400)
