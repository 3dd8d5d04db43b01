"""Noise in torch operations: the integers of the NumPy generators, for batches made of several images."""

import shutil

import numpy as np
import pytest
import torch

from smoothmix_deploy.noise.gaussian import key_from_seed
from smoothmix_deploy.noise.on_device import DeviceNoise, philox
from smoothmix_deploy.noise.source import make_noise

KEY = "f0e1d2c3b4a5968778695a4b3c2d1e0f"  # both halves have their highest bits set
IMAGES = [0, 9, 2**33]


def batches(name, sigma, shape, rows=150, device="cpu", **options):
    """The same batch, by rows in random order: (NumPy's, torch's)."""
    rng = np.random.default_rng(0)
    dim = int(np.prod(shape))
    images = (rng.integers(0, 256, (3, dim)) / 255).astype(np.float32)
    slot, stream, sample = rng.integers(0, 3, rows), rng.integers(0, 4, rows), rng.integers(0, 10**9, rows)
    source = make_noise(name, KEY, sigma, shape)
    expected = np.empty((rows, dim), np.float32)
    for b in range(rows):
        source.fill(expected[b : b + 1], images[slot[b]], stream[b], IMAGES[slot[b]], int(sample[b]))
    noise = DeviceNoise(name, KEY, sigma, shape, device, **options)
    table = torch.from_numpy(np.stack([noise.table_row(image, 0) for image in images])).to(device)
    address = (slot, np.array(IMAGES)[slot], stream, sample)
    found = noise.fill(table, *(torch.from_numpy(part.astype(np.int64)).to(device) for part in address))
    return expected, found.cpu().numpy()


SHAPES = [(1, 28, 28), (1, 5, 7), (3, 32, 32), (3, 100, 101)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.12, 0.5, 2.0])
def test_grid_bit_for_bit(shape, sigma):
    """Equal to the last bit."""
    expected, found = batches("grid", sigma, shape, rows=40)
    assert expected.tobytes() == found.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_to_a_few_roundings(shape):
    """At sigma = 1 the largest normals are near 6, where a float's last bit is 4.8e-7."""
    expected, found = batches("gaussian", 1.0, shape, rows=40)
    assert np.abs(expected - found).max() <= 2e-6
    assert (expected == found).mean() > 0.5


def test_raw_words():
    """Philox in wrapping signed 64-bit arithmetic against NumPy's, with counters and keys of any size."""
    for seed in range(20):
        key = int(key_from_seed(seed), 16)
        halves = [key & (2**64 - 1), key >> 64]
        sample, image, stream = 12_345 * seed, 2**40 + seed, seed % 4
        numpy = np.random.Philox(key=np.array(halves, np.uint64), counter=[sample * 5, image, stream, 2])
        signed = torch.from_numpy(np.array(halves, np.uint64).view(np.int64))
        words = philox(torch.tensor([sample]), 5, torch.tensor([image]), torch.tensor([stream]), 2, signed)
        assert (words.numpy()[0].view(np.uint64) == numpy.random_raw(20)).all()


def test_parts_and_order_change_nothing(monkeypatch):
    """A batch larger than the scratch is made in parts."""
    _, whole = batches("grid", 0.5, (1, 28, 28))
    monkeypatch.setattr("smoothmix_deploy.noise.on_device._CHUNK", {"cpu": 20_000})
    _, parts = batches("grid", 0.5, (1, 28, 28))
    assert whole.tobytes() == parts.tobytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("name", ["grid", "gaussian"])
def test_compiled(name):
    """The compiler keeps the integers (wrapping products, logical shifts) and the accuracy."""
    expected, found = batches(name, 0.5, (1, 28, 28), compiled=True)
    assert np.abs(expected - found).max() <= (0 if name == "grid" else 2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["grid", "gaussian"])
def test_on_a_gpu(name, compiled):
    """The same on CUDA."""
    expected, found = batches(name, 0.5, (3, 32, 32), device="cuda", compiled=compiled)
    assert np.abs(expected - found).max() <= (0 if name == "grid" else 2e-6)
