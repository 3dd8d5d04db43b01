"""Grid noise: exact probabilities, exact integers, and a certificate that floating point cannot break."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from onnx_models import half_space, write_npz
from scipy import special, stats
from test_noise import KEY, philox

import smoothmix_deploy as smx
from smoothmix_deploy.certificates import read_certificates
from smoothmix_deploy.noise.grid import (
    OPEN,
    GridNoise,
    grid_slack,
    grid_table,
    refine,
    refinement_blocks,
    to_grid,
)
from smoothmix_deploy.noise.source import GENERATORS, make_noise, noise_slack
from smoothmix_deploy.noise.thresholds import largest_step, normal_tail, thresholds
from smoothmix_deploy.statistics.bounds import clopper_pearson_lower, clopper_pearson_upper, grid_noise_slack

SIGMAS = (0.12, 0.25, 0.5, 1.0)


def draw(sigma=0.5, key=KEY, dim=784, stream=1, image=0, first=0, count=100, level=0):
    """Noise as integers."""
    out = np.empty((count, dim), np.float32)
    GridNoise(key, sigma, dim).fill(out, np.full(dim, level, np.int16), stream, image, first)
    integers = np.rint(out * 255).astype(int)
    assert (integers.astype(np.float32) * np.float32(1 / 255) == out).all()  # the floats are those of integers
    return integers - level


def exact(words_64, sigma):
    """The definition, one 64-bit integer at a time, without tables."""
    bounds = [int(t) for t in thresholds(sigma)]
    return [sum(t <= int(u) for t in bounds) - len(bounds) // 2 for u in words_64]


@pytest.mark.parametrize("sigma", [0.001, 0.12, 0.25, 0.5, 1.0, 3.0])
def test_thresholds_are_those_of_the_normal_distribution(sigma):
    """Against SciPy, relatively in the tail; symmetric to the last integer; nothing of 2^-64 is left out."""
    found = [int(t) for t in thresholds(sigma)]
    steps = len(found) // 2
    assert found == sorted(found)
    assert all(a + b == 2**64 for a, b in zip(found, reversed(found), strict=True))
    m = np.arange(steps, 0, -1)
    tail = special.ndtr(-(2 * m - 1) / (510 * sigma)) * 2.0**64
    np.testing.assert_allclose(np.array(found[:steps], float), tail, rtol=1e-13, atol=0.5 + 1e-9)
    assert special.ndtr(-(2 * steps + 1) / (510 * sigma)) < 2.0**-65 * (1 + 1e-10)


@pytest.mark.parametrize("x", [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 2), Fraction(17, 4), Fraction(9)])
def test_tail_to_the_last_integer(x):
    """Another series (Abramowitz and Stegun 26.2.11, all terms positive) in rational numbers, to 2^-100."""
    term, total, n = x, x, 1
    while term > Fraction(1, 2**200):
        term *= x * x / (2 * n + 1)
        total += (term := Fraction(int(term * 2**240), 2**240))
        n += 1
    power, exponential, n = Fraction(1), Fraction(1), 1
    while power > Fraction(1, 2**240):
        power *= x * x / 2 / n
        exponential, n = exponential + power, n + 1
    pi = Fraction(314159265358979323846264338327950288419716939937510582097494459230781640628620899, 10**80)
    root = Fraction(math.isqrt(int(2 * pi * 2**400)), 2**200)
    tail = Fraction(1, 2) - total / exponential / root
    assert abs(normal_tail(x) - tail * 2**64) <= Fraction(1, 2) + Fraction(1, 2**30)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_table_agrees_with_the_definition(sigma):
    """Upper 16 bits by table, the rest by the refinement word: at every threshold and bucket edge, and next to them."""
    table = grid_table(sigma)
    rng = np.random.default_rng(0)
    near = [int(t) + d for t in table.thresholds for d in (-1, 0, 1) if int(t) + d < 2**64]
    edges = [(int(b) << 48) + d for b in rng.integers(1, 2**16, 300) for d in (-1, 0, 1)]
    words = np.array([*near, *edges, 0, 1, 2**64 - 1, *rng.integers(0, 2**64, 500, np.uint64).tolist()], np.uint64)
    upper = (words >> np.uint64(48)).astype(np.uint16)
    noise = table.value[upper][:, None]
    # One draw a row, its refinement word holding the lower 48 bits.
    refine(noise, upper[:, None], (words << np.uint64(16))[:, None], table)
    expected = np.searchsorted(table.thresholds, words, side="right") + table.lowest
    assert (noise[:, 0] == expected).all()
    some = rng.choice(len(words), 50)
    assert exact(words[some], sigma) == expected[some].tolist()
    assert (noise.min(), noise.max()) == (-largest_step(sigma), largest_step(sigma))


@pytest.mark.parametrize(
    ("dim", "image", "sample", "stream", "sigma"),
    [(16, 0, 0, 0, 0.5), (784, 9_999, 123_456, 1, 1.0), (50, 3, 7, 2, 0.25)],
)
def test_known_answer_from_the_definition(dim, image, sample, stream, sigma):
    """The layout that the module promises, computed independently in Python integers."""
    number = int(KEY, 16)
    key = [number & (2**64 - 1), number >> 64]
    reserve = refinement_blocks(dim, grid_table(sigma).open_buckets)

    def words(blocks, region):
        return [w for j in range(blocks) for w in philox([sample * blocks + j + 1, image, stream, region], key)]

    upper = [w >> 16 * lane & 0xFFFF for w in words(-(-dim // 16), 1) for lane in range(4)][:dim]
    refinement = iter(words(reserve, 2))
    bounds = [int(t) for t in thresholds(sigma)]
    opened = {t >> 48 for t in bounds if t & (2**48 - 1)}  # a threshold on the edge decides nothing inside
    full = [h << 48 | (next(refinement) >> 16 if h in opened else 0) for h in upper]
    found = draw(sigma, dim=dim, stream=stream, image=image, first=sample, count=1)[0]
    assert found.tolist() == exact(full, sigma)


def test_known_answers_as_numbers():
    """Written down once: a change of layout cannot pass unnoticed."""
    assert draw(0.5, dim=16, image=3, first=7, count=1).tolist() == [
        [153, -165, 20, 66, 31, -187, -23, 71, -96, 210, -72, 26, -71, 182, -124, -45]
    ]
    normals = np.empty((1, 8), np.float32)
    make_noise("gaussian", KEY, 1.0, (1, 2, 4)).fill(normals, np.zeros(8, np.float32), 1, 3, 7)
    np.testing.assert_allclose(
        normals[0],
        [-2.352201, 0.233712, 1.01019, -0.357129, -2.002295, 0.347906, -0.492672, -0.930947],
        rtol=0,
        atol=2e-6,
    )
    assert GENERATORS == {"gaussian": "philox4x64-10/box-muller-32", "grid": "philox4x64-10/grid-255-16+48"}


@pytest.mark.parametrize("dim", [8, 50, 784, 3072, 70_000])
def test_any_range_is_the_same_samples(dim):
    """Drawn at once, in parts, or alone, with any scratch left over: equal."""
    count = 257 if dim < 10_000 else 5
    whole = draw(dim=dim, count=count)
    for first, size in ((count - 1, 1), (0, 3), (count // 3, count // 2)):
        assert (draw(dim=dim, first=first, count=size) == whole[first : first + size]).all()
    others = [
        draw(dim=dim, count=count, **other) for other in ({"image": 1}, {"stream": 0}, {"first": 999}, {"sigma": 1.0})
    ]
    assert all((other != whole).mean() > 0.9 for other in others)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_chi_square_against_exact_cells(sigma):
    """Four million draws, every integer with an expectation of 5 or more its own cell. The key is fixed."""
    noise = draw(sigma, dim=1000, count=4000)
    steps = largest_step(sigma)
    counts = np.bincount(noise.ravel() + steps, minlength=2 * steps + 1)
    edges = [0, *(int(t) for t in thresholds(sigma)), 2**64]
    share = np.diff(np.array([float(Fraction(t, 2**64)) for t in edges]))
    expected = share * noise.size
    common = expected >= 5
    cells = np.append(counts[common], counts[~common].sum())
    assert stats.chisquare(cells, np.append(expected[common], noise.size - expected[common].sum())).pvalue > 1e-3
    beyond = int((np.abs(noise) > 4 * 255 * sigma).sum())
    tail = 2 * special.ndtr(-(2 * math.floor(4 * 255 * sigma) + 1) / (510 * sigma))
    assert stats.binomtest(beyond, noise.size, tail).pvalue > 1e-3
    for product in (noise[:, 1:] * noise[:, :-1], noise[1:] * noise[:-1], noise[:, 500:] * noise[:, :500]):
        assert abs(product.mean() / (255 * sigma) ** 2 * math.sqrt(product.size)) < 4


def test_open_draws_have_the_right_conditional_distribution():
    """Where the upper bits do not decide, the refinement words do: their share is exact too."""
    table = grid_table(0.5)
    centre = int(np.searchsorted(table.thresholds, np.uint64(2**63)))  # threshold of +1/2 step
    bucket = int(table.thresholds[centre]) >> 48
    assert table.value[bucket] == OPEN
    share = (int(table.thresholds[centre]) & (2**48 - 1)) / 2**48
    bits = np.random.Generator(np.random.Philox(1)).integers(0, 2**64 - 1, 4000, dtype=np.uint64, endpoint=True)
    found = np.full((4000, 1), OPEN)
    refine(found, np.full((4000, 1), bucket, np.uint16), bits[:, None], table)
    assert stats.binomtest(int((found == found.min()).sum()), 4000, share).pvalue > 1e-3


def test_too_few_words_is_as_improbable_as_promised():
    """The number of words a sample, against the exact binomial tail; and what is beyond them gets zeros."""
    for dim, buckets in ((64, 904), (784, 240), (784, 904), (3072, 904), (150_528, 1706), (784, 15_188)):
        words = 4 * refinement_blocks(dim, buckets)
        assert words >= dim or stats.binom.sf(words, dim, buckets / 2**16) < 2.0**-64
    assert 4 * refinement_blocks(3072, 904) < 3072 / 4 / 4  # and there are not many of them
    table = grid_table(0.5)
    bucket = int(np.flatnonzero(table.value == OPEN)[100])
    noise, upper = np.full((2, 9), OPEN), np.full((2, 9), bucket, np.uint16)
    refine(noise, upper, np.full((2, 4), 2**64 - 1, np.uint64), table)
    assert (noise[:, :4] == table.start[bucket] + 1).all()
    assert (noise[:, 4:] == table.start[bucket]).all()


def test_slack():
    """Its value, its place in the bound, and that it covers the distance between drawn and exact noise."""
    assert grid_noise_slack(784, 2334) >= Fraction(784 * 2336 + 1, 2**64)
    assert grid_slack(0.5, 784) == grid_noise_slack(784, 2334) == noise_slack("grid", 0.5, (1, 28, 28)) < 1e-13
    assert noise_slack("gaussian", 0.5, (1, 28, 28)) == 0
    assert clopper_pearson_lower(90, 100, 0.01, 0.25) == clopper_pearson_lower(90, 100, 0.01) - 0.25
    assert clopper_pearson_lower(1, 100, 0.01, 0.25) == 0
    assert clopper_pearson_upper(10, 100, 0.01, 0.25) == pytest.approx(clopper_pearson_upper(10, 100, 0.01) + 0.25)
    assert clopper_pearson_upper(99, 100, 0.01, 0.25) == 1
    with pytest.raises(ValueError, match="slack"):
        clopper_pearson_lower(1, 2, 0.01, -1e-9)


def test_images_must_be_on_the_grid():
    """8-bit images pass, however their floats were rounded; others are refused with their value."""
    levels = np.arange(256)
    assert (to_grid((levels / 255).astype(np.float32), 0) == levels).all()
    assert (to_grid(levels.astype(np.float32) * np.float32(1 / 255), 0) == levels).all()
    for wrong in (1 / 16, 0.5, -1 / 255, 256 / 255, np.nan, np.inf):
        with pytest.raises(smx.BadInput, match="--noise grid: image 7 has the value"):
            to_grid(np.array([0.0, wrong], np.float32), 7)
    for sigma in (0.0, -1.0, 12.5, math.nan):
        with pytest.raises(smx.BadInput, match="--noise grid needs a sigma"):
            make_noise("grid", KEY, sigma, (1, 2, 2))
    with pytest.raises(smx.BadInput, match="unknown; known: gaussian, grid"):
        make_noise("laplace", KEY, 1.0, (1, 2, 2))


def test_largest_sigma_fits_into_16_bits():
    """The noise and the brightest pixel together."""
    noise = draw(12.0, dim=64, count=50, level=255)
    assert largest_step(12.0) + 255 < 2**15 - 1
    assert noise.std() == pytest.approx(12 * 255, rel=0.05)


def grid_sum(values, sigma):
    """Exact distribution of the sum of `values` grid noises: P[sum = i - offset] at i, and offset."""
    edges = [0, *(int(t) for t in thresholds(sigma)), 2**64]
    cells = np.array([float(Fraction(b - a, 2**64)) for a, b in pairwise(edges)])
    total = np.ones(1)
    for _ in range(values):
        total = np.convolve(total, cells)
    return total, values * largest_step(sigma)


def test_certify_end_to_end(tmp_path):
    """Votes of a half-space have the grid's exact probability, coarse as it is here (sigma = 2.5 pixel levels)."""
    sigma, n, levels = 2.5 / 255, 4000, np.random.default_rng(1).integers(0, 256, (30, 2, 4, 1), np.uint8)
    sums = levels.reshape(30, -1).sum(axis=1).astype(int)
    border = int(np.median(sums)) // 4 * 4 + 0.5  # between two sums of integers: rounding cannot matter
    levels[:, 0, 0, 0] = np.clip(levels[:, 0, 0, 0] + np.clip(border - sums, -128, 127), 0, 255).astype(np.uint8)
    sums = levels.reshape(30, -1).sum(axis=1).astype(int)
    data = write_npz(tmp_path / "x.npz", levels, (sums > border).astype(int))
    model = half_space(tmp_path / "h.onnx", np.ones(8), border / 255)
    out = tmp_path / "c.jsonl"
    result = smx.certify(model, data=data, sigma=sigma, n=n, noise="grid", seed=3, out=out)
    manifest, certificates = result.manifest, read_certificates(out).certificates
    assert (manifest.noise, manifest.generator) == ("grid", GENERATORS["grid"])
    assert manifest.rule_parameters == {"slack": grid_slack(sigma, 8)}
    cells, offset = grid_sum(8, sigma)
    between = 0
    for c in certificates:
        p = min(1.0, cells[max(0, math.ceil(border - sums[c.index]) + offset) :].sum())
        between += 0.001 < p < 0.999
        assert stats.binomtest(c.counts.get(1, 0), n, p).pvalue > 1e-6
        assert c.radius <= abs(border - sums[c.index]) / 255 / math.sqrt(8) or c.prediction == -1
        top = max(c.selection_counts, key=c.selection_counts.get)
        assert c.p_lower == clopper_pearson_lower(c.counts[top], n, 0.001, grid_slack(sigma, 8))
    assert between >= 5
    assert smx.verify(out, artefact=model, rerun=5).same_engine
    predicted = smx.predict(model, data=data, sigma=sigma, n=n, noise="grid", seed=3)
    assert [p.radius for p in predicted] == [c.radius for c in certificates]


def test_resumption_and_other_noise(tmp_path):
    """A run goes on with its own noise only, and ends as if it had not been interrupted."""
    levels = np.random.default_rng(1).integers(0, 256, (6, 2, 4, 1), np.uint8)
    data = write_npz(tmp_path / "x.npz", levels, np.zeros(6, int))
    model = half_space(tmp_path / "h.onnx", np.ones(8), 4.0)
    options = {"data": data, "sigma": 0.25, "n": 200, "seed": 3}
    smx.certify(model, noise="grid", out=tmp_path / "a", **options)
    whole = (tmp_path / "a").read_text().splitlines()
    (tmp_path / "b").write_text("\n".join(whole[:4]) + "\n")
    with pytest.raises(smx.BadInput, match="was begun with noise grid, now it is gaussian"):
        smx.certify(model, noise="gaussian", out=tmp_path / "b", resume=True, **options)
    smx.certify(model, noise="grid", out=tmp_path / "b", resume=True, **options)
    for a, b in zip(whole, (tmp_path / "b").read_text().splitlines(), strict=True):
        assert a.split('"seconds"')[0] == b.split('"seconds"')[0]


def test_verify_demands_the_slack(tmp_path):
    """A manifest that claims grid noise without its correction, with a smaller one, or for another shape, fails."""
    levels = np.full((2, 2, 4, 1), 100, np.uint8)
    data = write_npz(tmp_path / "x.npz", levels, np.zeros(2, int))
    model = half_space(tmp_path / "h.onnx", np.ones(8), 4.0)
    smx.certify(model, data=data, sigma=0.25, n=100, noise="grid", out=tmp_path / "c")
    text = (tmp_path / "c").read_text()
    slack = f'"slack": {grid_slack(0.25, 8)!r}'
    assert slack in text
    for old, new in (
        (slack, ""),
        (slack, '"slack": 0.0'),
        (slack, '"slack": -1'),
        ('"shape": [1, 2, 4]', '"shape": 3'),
    ):
        (tmp_path / "d").write_text(text.replace(old, new, 1))
        with pytest.raises(smx.CheckFailed, match="line 1: impossible manifest"):
            smx.verify(tmp_path / "d")
    smaller = f'"slack": {grid_slack(0.25, 2)!r}'
    (tmp_path / "d").write_text(text.replace(slack, smaller, 1).replace('"shape": [1, 2, 4]', '"shape": [1, 1, 2]', 1))
    with pytest.raises(smx.CheckFailed, match=r"line 1: shape \[1, 1, 2\], but the images are \[1, 2, 4\]"):
        smx.verify(tmp_path / "d", artefact=model, rerun=1)
    (tmp_path / "d").write_text(text.replace('"noise": "grid"', '"noise": "gaussian"', 1))
    with pytest.raises(smx.CheckFailed, match="line 1: unknown noise gaussian"):
        smx.verify(tmp_path / "d")


def test_refused_before_sampling(tmp_path, digits_export):
    """digits are multiples of 1/16: no file is begun."""
    with pytest.raises(smx.BadInput, match=r"--noise grid: image 0 has the value 0\..*use --noise gaussian"):
        smx.certify(digits_export, n=100, stop=2, noise="grid", out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def attacked_votes(noise, level, count):
    """Votes for class 1 of a classifier that looks at rounding alone, at an image of one grey level.

    Where |pixel + noise| < 2^-7, float noise of a black pixel has many bits below 2^-29; noise that has just undone
    6/255 has none. Class 1: no such bit anywhere (the idea of Voracek and Hein 2023, section 3).
    """
    dim, votes = 1024, 0
    source = make_noise(noise, KEY, 0.25, (1, 32, 32))
    image_D = np.full(dim, level / 255, np.float32)
    out_ND = np.empty((500, dim), np.float32)
    for first in range(0, count, 500):
        source.fill(out_ND, image_D, 1, 0, first)
        small = np.abs(out_ND) < 2.0**-7
        fine = out_ND.astype(np.float64) * 2.0**29 % 1 != 0
        votes += int((small.any(axis=1) & ~(small & fine).any(axis=1)).sum())
    return votes


def test_floating_point_attack():
    """Breaks the certificate of float noise inside its radius, and finds nothing against grid noise."""
    n, distance = 10_000, 6 / 255 * 32
    for noise, broken in (("gaussian", True), ("grid", False)):
        slack = noise_slack(noise, 0.25, (1, 32, 32))
        p_lower = clopper_pearson_lower(n - attacked_votes(noise, 0, n), n, 0.001, slack)
        assert 0.25 * special.ndtri(p_lower) > distance  # "class 0 is proved at this distance"
        assert (attacked_votes(noise, 6, 1000) > 500) == broken


def test_neighbours_see_the_same_floats():
    """On the grid the classifier cannot tell by its input's bits what was added: every float is some integer's."""
    floats = np.arange(-3000, 3000).astype(np.float32) * np.float32(1 / 255)
    for level in (0, 1, 128, 255):
        out = np.empty((20, 784), np.float32)
        make_noise("grid", KEY, 0.5, (1, 28, 28)).fill(out, np.full(784, level / 255, np.float32), 1, 0, 0)
        assert np.isin(out, floats).all()
