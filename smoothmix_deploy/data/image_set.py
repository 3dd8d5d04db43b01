"""The two kinds of image set: arrays in memory, and files decoded when asked for."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import BadInput
from ..messages import first_line

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Not all that Pillow reads: for some it calls other programs."""
_MOST_PIXELS = 1 << 26


class ImageSet(ABC):
    """Labelled images of one shape. `image(i)` is float32 [C, H, W] in [0, 1]; `labels` int64 [n]."""

    def __init__(
        self,
        name: str,
        split: str,
        labels: np.ndarray,
        shape: tuple[int, int, int],
        class_names: Sequence[str],
    ) -> None:
        self.name = name
        self.split = split
        self.labels = labels.astype(np.int64)
        self.shape = shape
        self.class_names = list(class_names)
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if len(outside):
            i = int(outside[0])
            raise BadInput(f"--data {name}: image {i} has label {labels[i]}, outside 0 .. {len(self.class_names) - 1}")
        if not len(self.labels):
            raise BadInput(f"--data {name}: no images in split {split}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @abstractmethod
    def image(self, i: int) -> np.ndarray:
        """Image i, float32 [C, H, W] in [0, 1]."""

    @abstractmethod
    def subset(self, indices: range) -> ImageSet:
        """The images of `indices` alone, in their order."""

    digest_of: str
    """What `digest` covers."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over the set: equal digests, equal images in equal order, as far as `digest_of` says."""


def to_unit_floats(x_NHWC: np.ndarray) -> np.ndarray:
    """float32 [N, C, H, W] in [0, 1] of uint8 images (k / 255) or of floats already in [0, 1]."""
    x_NCHW = np.ascontiguousarray(np.moveaxis(x_NHWC, 3, 1))
    return x_NCHW.astype(np.float32) / np.float32(255) if x_NCHW.dtype == np.uint8 else x_NCHW.astype(np.float32)


class InMemorySet(ImageSet):
    """Images as one array [N, H, W, C], uint8 or float in [0, 1]; converted an image or a batch at a time."""

    def __init__(
        self,
        name: str,
        split: str,
        x_NHWC: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if class_names is None:
            class_names = [str(k) for k in range(int(labels.max(initial=1)) + 1)]
        height, width, channels = x_NHWC.shape[1:]
        super().__init__(name, split, labels, (channels, height, width), class_names)
        self.x_NHWC = x_NHWC

    def image(self, i: int) -> np.ndarray:
        """See ImageSet."""
        return to_unit_floats(self.x_NHWC[i : i + 1])[0]

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Images [N, C, H, W] of `indices`, float32."""
        return to_unit_floats(self.x_NHWC[indices])

    def subset(self, indices: range) -> InMemorySet:
        """See ImageSet."""
        part = copy.copy(self)
        part.x_NHWC, part.labels = self.x_NHWC[indices], self.labels[indices]
        return part

    digest_of = "pixels and labels"

    def digest(self) -> str:
        """Over the pixel values and labels."""
        sha = hashlib.sha256(f"{self.x_NHWC.dtype} {self.x_NHWC.shape}".encode())
        sha.update(np.ascontiguousarray(self.x_NHWC).data)
        sha.update(np.ascontiguousarray(self.labels).data)
        return sha.hexdigest()


class LazySet(ImageSet):
    """Image files. All of one size, or resized (shorter side to `resize`) and centre-cropped to `crop`."""

    def __init__(
        self,
        name: str,
        split: str,
        files: Sequence[tuple[Path, int]],
        class_names: Sequence[str],
        *,
        resize: int | None = None,
        crop: int | None = None,
    ) -> None:
        self.files = [path for path, _ in files]
        self.resize, self.crop = resize, crop
        shape = (3, crop, crop) if crop else self._first_shape()
        super().__init__(name, split, np.array([label for _, label in files], np.int64), shape, class_names)

    def _first_shape(self) -> tuple[int, int, int]:
        if not self.files:
            return (3, 1, 1)  # the base class reports the empty set
        image = open_image(self.files[0])
        channels = 1 if image.mode in ("1", "L", "I;16") else 3
        return channels, image.height, image.width

    def image(self, i: int) -> np.ndarray:
        """See ImageSet."""
        image = open_image(self.files[i])
        if self.resize:
            scale = self.resize / min(image.size)
            size = round(image.width * scale), round(image.height * scale)
            image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        if self.crop:
            left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image_to_array(image, self.shape, self.files[i])

    def random_crop(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """Image i for training: a random area (8 to 100 %) and aspect ratio (3/4 to 4/3), resized; flipped by chance."""
        assert self.crop
        image = open_image(self.files[i]).convert("RGB")
        width, height = image.size
        for _ in range(10):
            area, ratio = (
                width * height * rng.uniform(0.08, 1.0),
                np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))),
            )
            w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w = h = min(width, height)
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        box = (left, top, left + w, top + h)
        image = image.resize((self.crop, self.crop), Image.Resampling.BILINEAR, box=box)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image_to_array(image, self.shape, self.files[i])

    def subset(self, indices: range) -> LazySet:
        """See ImageSet."""
        part = copy.copy(self)
        part.files, part.labels = [self.files[i] for i in indices], self.labels[indices]
        return part

    digest_of = "file names, sizes and labels"

    def digest(self) -> str:
        """Over class folder, name and size of each file, and its label: a large set is not read for it."""
        sha = hashlib.sha256(f"files resize={self.resize} crop={self.crop}".encode())
        for path, label in zip(self.files, self.labels, strict=True):
            sha.update(f"{path.parent.name}/{path.name} {path.stat().st_size} {label}\n".encode())
        return sha.hexdigest()


def open_image(path: Path) -> Image.Image:
    """A decoded image; BadInput for what is missing, truncated, animated, no image, or a decompression bomb."""
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: not a file, so not an image")
    try:
        with open(path, "rb") as file:
            image = Image.open(file, formats=_FORMATS)
            if image.width * image.height > _MOST_PIXELS:
                raise BadInput(f"{path}: says that it has {image.width} x {image.height} pixels: a decompression bomb")
            if getattr(image, "is_animated", False):
                raise BadInput(f"{path}: has several frames; save the one that is meant as an image of its own")
            image.load()
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise BadInput(f"{path}: not an image in a format that Pillow reads; repair or remove it") from None
    except Exception as error:  # damaged or hostile, whatever Pillow's readers make of it
        raise BadInput(f"{path}: cannot be decoded ({first_line(error)})") from None
    return image


def image_to_array(image: Image.Image, shape: tuple[int, int, int], path: Path) -> np.ndarray:
    """float32 [C, H, W] in [0, 1]; BadInput if the size is not that of `shape`."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise BadInput(f"{path}: image files have 1 or 3 channels, the model takes {channels}")
    if (image.height, image.width) != (height, width):
        raise BadInput(f"{path}: the image is {image.width} x {image.height} pixels, expected {width} x {height}")
    if image.mode.startswith(("I", "F")):
        raise BadInput(f"{path}: has more than 8 bits a channel; convert it to 8 bits first")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise BadInput(f"{path}: has transparent pixels, which look different to people; flatten it first")
    try:
        array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except ValueError as error:
        raise BadInput(f"{path}: pixels of mode {image.mode} ({first_line(error)}); convert it to RGB first") from None
    return to_unit_floats(array.reshape(1, height, width, channels))[0]
