"""Image sets: [C, H, W] float32 in [0, 1], in a fixed order, chosen by index."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import smoothmix_deploy as smx
from smoothmix_deploy.data import load_data, select


def test_digits():
    """scikit-learn's 1,797 images, split 1,437 / 360, 16 grey levels scaled to 1."""
    train, test = load_data("digits", split="train"), load_data("digits")
    assert (len(train), len(test)) == (1437, 360)
    image = test.image(0)
    assert (image.shape, image.dtype) == ((1, 8, 8), np.float32)
    assert set(np.unique(image * 16)) <= set(range(17))
    assert max(test.image(i).max() for i in range(20)) == 1.0
    assert train.digest() != test.digest() == load_data("digits").digest()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), range(0, 100, 1)),
        ((5, 20, 4), range(5, 20, 4)),
        ((0, 1000, 20), range(0, 100, 20)),
    ],
)
def test_select(given, expected):
    """As Python's ranges."""
    assert list(select(100, *given)) == list(expected)


@pytest.mark.parametrize("given", [(-1, None, None), (100, None, None), (7, 7, None), (0, 10, 0), (0, -5, 1)])
def test_select_refuses(given):
    """Nothing selected, or nonsense."""
    with pytest.raises(smx.BadInput):
        select(100, *given)


def test_npz_layouts(tmp_path):
    """uint8 and float, with and without a channel axis, mean the same pixels."""
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
    for name, array in (("a", x), ("b", (x / 255).astype(np.float32)), ("c", x[..., 0])):
        np.savez(tmp_path / f"{name}.npz", x=array, y=np.arange(4))
    a, b, c = (load_data(f"npz:{tmp_path / name}.npz") for name in "abc")
    assert a.shape == (3, 5, 6)
    assert c.shape == (1, 5, 6)
    np.testing.assert_array_equal(a.image(2), np.moveaxis(x[2], 2, 0).astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(a.image(2), b.image(2), atol=1e-7)
    np.testing.assert_array_equal(a.image(1)[:1], c.image(1))
    assert a.num_classes == 4


def test_folder(tmp_path):
    """One folder a class, sorted; split folders are found; sizes must agree."""
    for split, count in (("train", 3), ("test", 2)):
        for name in ("b", "a"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (7, 5), (10 * i, 20, 30)).save(tmp_path / split / name / f"{i}.png")
    images = load_data(f"folder:{tmp_path}", split="train")
    assert images.class_names == ["a", "b"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.shape == (3, 5, 7)
    np.testing.assert_allclose(images.image(2)[:, 0, 0], np.array([20, 20, 30]) / 255, atol=1e-7)
    assert len(load_data(f"folder:{tmp_path}")) == 4
    Image.new("RGB", (8, 5)).save(tmp_path / "train" / "b" / "9.png")
    with pytest.raises(smx.BadInput, match="8 x 5 pixels, expected 7 x 5"):
        load_data(f"folder:{tmp_path}", split="train").image(6)


def write_mnist(root, count):
    """The MNIST files in torchvision's layout, with made-up pixels."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
        for name in ("images-idx3", "labels-idx1"):
            (raw / f"{prefix}-{name}-ubyte.gz").write_bytes(
                gzip.compress((raw / f"{prefix}-{name}-ubyte").read_bytes())
            )
    return pixels, labels


def test_mnist_layout(tmp_path):
    """torchvision's MNIST: order, labels and scale."""
    pixels, labels = write_mnist(tmp_path, 30)
    images = load_data("mnist", root=tmp_path)
    assert (images.shape, images.num_classes) == ((1, 28, 28), 10)
    np.testing.assert_array_equal(images.labels, labels)
    np.testing.assert_array_equal(images.image(7)[0], pixels[7].astype(np.float32) / np.float32(255))


def test_real_mnist():
    """The official files, where they are."""
    root = Path(os.environ.get("SMX_DATA_ROOT", "data"))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip("no MNIST (set SMX_DATA_ROOT to torchvision's folder)")
    images = load_data("mnist", root=root)
    assert len(images) == 10_000
    assert images.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenet"])
def test_missing_sets_say_what_to_do(tmp_path, name):
    """Without a root, and with an empty one."""
    with pytest.raises(smx.BadInput, match="--data-root"):
        load_data(name)
    with pytest.raises(smx.BadInput, match=r"--download|cannot be downloaded"):
        load_data(name, root=tmp_path)


def test_missing_set_names_only_options_of_smx(tmp_path):
    """torchvision's own advice is a Python argument."""
    with pytest.raises(smx.BadInput, match="add --download") as raised:
        load_data("mnist", root=tmp_path, split="test")
    assert "download=True" not in str(raised.value)
