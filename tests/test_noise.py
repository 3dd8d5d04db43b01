"""Noise is N(0, 1), a function of its address alone, and the same for ever."""

import numpy as np
import pytest
from scipy import stats

from smoothmix_deploy.noise.gaussian import GaussianNoise, Stream, key_from_seed, random_key

KEY = "000102030405060708090a0b0c0d0e0f"


def draw(key=KEY, dim=64, stream=1, image=0, first=0, count=100):
    out = np.empty((count, dim), np.float32)
    GaussianNoise(key, dim).fill(out, stream, image, first)
    return out


def philox(counter, key):
    """Philox-4x64-10 from its definition (Salmon et al. 2011, section 3.3), in Python integers."""
    mask = 2**64 - 1
    key = list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [(b >> 64) ^ counter[1] ^ key[0], b & mask, (a >> 64) ^ counter[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


@pytest.mark.parametrize(("dim", "image", "sample", "stream"), [(8, 0, 0, 0), (784, 9_999, 123_456, 1), (50, 3, 7, 2)])
def test_known_answer_from_the_definition(dim, image, sample, stream):
    """The layout that the module promises, computed independently: Philox, then Box and Muller in double precision."""
    blocks = -(-dim // 8)
    number = int(KEY, 16)
    key = [number & (2**64 - 1), number >> 64]
    words = [w for j in range(blocks) for w in philox([sample * blocks + j + 1, image, stream, 0], key)]
    integers = np.array(words, "<u8").view("<i4").astype(np.float64)
    half = 4 * blocks
    radius = np.sqrt(-2 * np.log(np.minimum(np.abs(integers[:half]) * 2.0**-31 + 2.0**-33, 1.0)))
    angle = integers[half:] * np.pi * 2.0**-31
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:dim]
    found = draw(dim=dim, stream=stream, image=image, first=sample, count=1)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)  # float32 logarithm near 1
    assert np.abs(found - expected).mean() < 1e-6


@pytest.mark.parametrize("dim", [8, 50, 64, 784, 3072])
def test_any_range_is_the_same_samples(dim):
    """Drawn at once, in parts, or alone: equal to the last bit."""
    whole = draw(dim=dim, count=257)
    generator = GaussianNoise(KEY, dim)
    for first, count in ((256, 1), (0, 3), (100, 157), (7, 64)):
        part = np.empty((count, dim), np.float32)
        generator.fill(part, 1, 0, first)
        assert part.tobytes() == whole[first : first + count].tobytes()


def test_addresses_do_not_overlap():
    """Other keys, images, streams and samples give other values."""
    rows = [draw(count=50), draw(image=1, count=50), draw(stream=0, count=50), draw(first=50, count=50)]
    rows.append(draw(key=KEY[:-1] + "e", count=50))
    values = np.concatenate(rows)
    assert len(np.unique(values, axis=0)) == len(values)
    correlation = np.corrcoef(values)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.75  # 64 values a row


def test_distribution():
    """Chi-square against exact cell probabilities, and neighbours are uncorrelated. The seed is fixed."""
    values = draw(dim=784, count=2000)
    edges = stats.norm.ppf(np.linspace(0, 1, 1001)[1:-1])
    counts = np.bincount(np.searchsorted(edges, values.ravel()), minlength=1000)
    assert stats.chisquare(counts).pvalue > 1e-4
    tails = (np.abs(values) > 4).sum()
    assert stats.binomtest(int(tails), values.size, 2 * stats.norm.sf(4)).pvalue > 1e-4
    for shifted in (values[:, 1:] * values[:, :-1], values[1:] * values[:-1], values[:, 392:] * values[:, :392]):
        z = shifted.astype(np.float64).mean() * np.sqrt(shifted.size)
        assert abs(z) < 4.5
    norms = np.square(values.astype(np.float64)).sum(axis=1)
    assert stats.kstest(norms, stats.chi2(784).cdf).pvalue > 1e-4


def test_never_infinite():
    """The integer 0, the worst a uniform can be, still gives a finite normal."""

    class Zeros(GaussianNoise):
        def __init__(self):
            super().__init__(KEY, 8)
            self._integers = lambda low, high, size, dtype, endpoint: np.zeros(size, dtype)

    out = np.empty((3, 8), np.float32)
    Zeros().fill(out, 0, 0, 0)
    assert np.isfinite(out).all()
    assert out.max() == pytest.approx(np.sqrt(-2 * np.log(2.0**-33)), rel=1e-5)


def test_keys():
    """From the operating system: never twice the same. From a seed: always the same."""
    assert len({random_key() for _ in range(100)}) == 100
    assert len(random_key()) == len(key_from_seed(0)) == 32
    assert key_from_seed(1) == key_from_seed(1) != key_from_seed(2)
    assert {int(stream) for stream in Stream} == {0, 1, 2, 3, 4}  # part of every certificate's meaning: never renumber
