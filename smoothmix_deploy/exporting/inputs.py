"""The images that the parity gate and the calibration add noise to: the model's own data where it can be found, synthetic ones elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data import ImageSet, InMemorySet, load_data, select
from ..errors import BadInput
from .source import ModelFacts

_IMAGES = 256


def find_images(
    facts: ModelFacts, data: str | None, data_root: Path | str | None, download: bool, *, split: str
) -> tuple[ImageSet, str]:
    """Up to 256 images, spread over the set, and a description for the report.

    Data named by the user must load, from `split` or else from the other one; the training data of the model is used
    where it still is; otherwise the images are synthetic and the description says why.
    """
    known = facts.data or {}
    name = data or known.get("name")
    root = data_root or known.get("root")
    reason = "the model names no data set"
    splits = ("test", "train") if split == "test" else ("train", "test")
    for part in splits:
        try:
            if name is None:
                break
            images = load_data(name, root=root, split=part, download=download)
        except BadInput as error:
            if data is not None and part == splits[-1]:
                raise
            reason = str(error)
            continue
        if images.shape != facts.input_shape:
            raise BadInput(f"--data {name}: images are {images.shape}, the model takes {facts.input_shape}")
        step = max(1, len(images) // _IMAGES)
        chosen = images.subset(select(len(images), 0, step * _IMAGES, step))
        return chosen, f"{len(chosen)} images of {name} ({part})"
    return _synthetic(facts.input_shape), f"synthetic ({reason})"


def _synthetic(shape: tuple[int, int, int]) -> ImageSet:
    """Blurred uniform noise at several scales: bright and dark, smooth and rough."""
    from scipy.ndimage import gaussian_filter

    channels, height, width = shape
    rng = np.random.default_rng(0)
    images = np.empty((_IMAGES, height, width, channels), np.float32)
    for i in range(_IMAGES):
        scale = (0.0, 1.0, 2.0, 4.0)[i % 4] * min(height, width) / 32
        image = gaussian_filter(rng.random((height, width, channels)), (scale, scale, 0))
        low, high = image.min(), image.max()
        images[i] = (image - low) / max(high - low, 1e-9) * rng.uniform(0.3, 1.0)
    return InMemorySet("synthetic", "test", images, np.zeros(_IMAGES, np.int64), ["?", "-"])
