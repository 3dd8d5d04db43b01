"""`--data NAME`: from a name and a folder to an image set."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput
from ..messages import first_line
from ..records import MOST_CLASSES
from .image_set import ImageSet, InMemorySet, LazySet

Channels = tuple[float, ...]
IMAGENET_MEAN_SD: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10_MEAN_SD: tuple[Channels, Channels] = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@dataclass(frozen=True)
class DataInfo:
    """What is known of a named set without reading it."""

    shape: tuple[int, int, int]
    num_classes: int
    mean_sd: tuple[Channels, Channels] | None
    """Channel means and standard deviations for the network's first layer; None: no such layer."""
    augment: str = "none"
    """Training augmentation: "none", "crop-flip" (pad 4), "resized-crop"."""
    torchvision: str | None = None


_KNOWN = {
    "digits": DataInfo((1, 8, 8), 10, None),
    "mnist": DataInfo((1, 28, 28), 10, None, torchvision="MNIST"),
    "fashion-mnist": DataInfo((1, 28, 28), 10, None, torchvision="FashionMNIST"),
    "cifar10": DataInfo((3, 32, 32), 10, CIFAR10_MEAN_SD, "crop-flip", "CIFAR10"),
    "cifar100": DataInfo(
        (3, 32, 32), 100, ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)), "crop-flip", "CIFAR100"
    ),
    "svhn": DataInfo((3, 32, 32), 10, ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)), "none", "SVHN"),
    "imagenet": DataInfo((3, 224, 224), 1000, IMAGENET_MEAN_SD, "resized-crop", "ImageNet"),
}
DATA_NAMES = (*_KNOWN, "npz:PATH", "folder:PATH")
_DIGITS_TRAIN = 1437
_BOMB = 1 << 30
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def data_info(name: str) -> DataInfo | None:
    """What is known of the set `name` in advance; None for npz: and folder:. BadInput for names nobody knows."""
    _check_name(name)
    return _KNOWN.get(name)


def _check_name(name: str) -> None:
    if name not in _KNOWN and not name.startswith(("npz:", "folder:")):
        raise BadInput(f"--data {name}: unknown; known: {', '.join(DATA_NAMES)}")


def load_data(name: str, *, root: Path | str | None = None, split: str = "test", download: bool = False) -> ImageSet:
    """The set `name`, from `root` for torchvision's. Raises BadInput: unknown, missing, malformed."""
    _check_name(name)
    if split not in ("train", "test"):
        raise BadInput(f"--split {split}: must be train or test")
    if name == "digits":
        return _digits(split)
    if name.startswith("npz:"):
        return _npz(Path(name.removeprefix("npz:")), name, split)
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")), name, split)
    return _torchvision(name, Path(root) if root else None, split, download)


def select(total: int, start: int | None, stop: int | None, skip: int | None) -> range:
    """The indices start, start + skip, ... below stop. BadInput if out of range or none."""
    start, skip = start or 0, 1 if skip is None else skip
    stop = total if stop is None else min(stop, total)
    if start < 0 or skip < 1 or stop < 0:
        raise BadInput(f"--start {start} --stop {stop} --skip {skip}: start and stop must be >= 0, skip >= 1")
    if start >= stop:
        raise BadInput(f"--start {start} --stop {stop}: selects none of the {total} images")
    return range(start, stop, skip)


def _digits(split: str) -> ImageSet:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    part = slice(None, _DIGITS_TRAIN) if split == "train" else slice(_DIGITS_TRAIN, None)
    images = (bunch.images[part, :, :, None] / 16).astype(np.float32)
    return InMemorySet("digits", split, images, bunch.target[part], [str(k) for k in range(10)])


def _npz(path: Path, name: str, split: str) -> ImageSet:
    """`x` uint8 or float in [0, 1], [n, H, W, C] or [n, H, W]; `y` integers [n]. Has no splits."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise BadInput(f"{path}: a single array, expected an .npz archive with arrays x and y")
            missing = {"x", "y"} - set(archive.files)
            if missing:
                raise BadInput(f"{path}: has no array {', '.join(sorted(missing))}; found {', '.join(archive.files)}")
            _check_sizes(path, archive)
            x, y = archive["x"], archive["y"]
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except BadInput:
        raise
    except Exception as error:  # damaged or foreign, whatever NumPy's and zipfile's readers make of it
        raise BadInput(f"{path}: not a readable .npz file ({first_line(error)})") from None
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
        raise BadInput(f"{path}: its x or y is not a NumPy array")
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4:
        raise BadInput(f"{path}: x has shape {x.shape}, expected [n, H, W, C] or [n, H, W]")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise BadInput(f"{path}: y is {y.dtype} {y.shape}, expected {len(x)} integers")
    if x.dtype != np.uint8:
        if x.dtype.kind != "f":
            raise BadInput(f"{path}: x is {x.dtype}, expected uint8 or floats in [0, 1]")
        if not (x.size == 0 or (x.min() >= 0 and x.max() <= 1)):  # NaN fails too
            raise BadInput(f"{path}: x has values outside [0, 1]; divide by 255, or store uint8")
    if len(y) and y.min() < 0:
        raise BadInput(f"{path}: y has the negative label {y.min()}")
    if len(y) and y.max() >= MOST_CLASSES:
        raise BadInput(f"{path}: y has the label {y.max()}; labels must be below {MOST_CLASSES}")
    return InMemorySet(name, split, x, y)


def _check_sizes(path: Path, archive: Any) -> None:
    """BadInput before anything is unpacked that says to be larger than the memory, or than its packed form can hold."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 40
    for name in ("x", "y"):
        info = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
        with archive.zip.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read[version](file)
            size = math.prod(int(length) for length in shape) * dtype.itemsize
            if min(shape, default=0) < 0 or size > info.file_size or size > memory // 2:
                raise BadInput(
                    f"{path}: {name} says that it has shape {shape} of {dtype} in {info.compress_size} packed bytes: "
                    "damaged, or a decompression bomb"
                )
            if size > _BOMB and size > 200 * info.compress_size:
                raise BadInput(f"{path}: {info.compress_size} bytes unpack to {size}: a decompression bomb")


def _folder(path: Path, name: str, split: str) -> ImageSet:
    """One folder of images per class, in `path` or in `path`/train and `path`/test (or val)."""
    if not path.is_dir():
        raise BadInput(f"--data {path}: no such folder")
    for sub in (split, "val") if split == "test" else (split,):
        if (path / sub).is_dir():
            path = path / sub
            break
    else:
        if any((path / sub).is_dir() for sub in ("train", "test", "val")):
            raise BadInput(f"{path}: has folders for splits, but none for {split}")
    classes = sorted(p.name for p in path.iterdir() if p.is_dir())
    files = [
        (file, label)
        for label, class_name in enumerate(classes)
        for file in sorted((path / class_name).rglob("*"))
        if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()  # a pipe would be waited for
    ]
    if not files:
        raise BadInput(f"{path}: no images found (expected one folder of images per class)")
    return LazySet(name, split, files, classes)


def _torchvision(name: str, root: Path | None, split: str, download: bool) -> ImageSet:
    if root is None:
        raise BadInput(f"--data {name}: needs --data-root DIR (add --download to fetch the data set into it)")
    from torchvision import datasets

    info = _KNOWN[name]
    assert info.torchvision is not None
    make: Callable[..., Any] = getattr(datasets, info.torchvision)
    hint = f"--data {name}: not found in --data-root {root}"
    try:
        if name == "imagenet":
            source = make(str(root), split="train" if split == "train" else "val")
            classes = [names if isinstance(names, str) else names[0] for names in source.classes]
            return LazySet(name, split, [(Path(f), k) for f, k in source.samples], classes, resize=256, crop=224)
        if name == "svhn":
            source = make(str(root), split=split, download=download)
            x, y, classes = source.data.transpose(0, 2, 3, 1), source.labels, [str(k) for k in range(10)]
        else:
            source = make(str(root), train=split == "train", download=download)
            x, y, classes = np.asarray(source.data), np.asarray(source.targets), list(source.classes)
    except (RuntimeError, FileNotFoundError) as error:
        remedy = "it cannot be downloaded" if name == "imagenet" else "check the folder, or add --download"
        said = str(error).splitlines()[0].partition(" You can use download")[0]  # which is no option of smx
        raise BadInput(f"{hint} ({said}); {remedy}") from None
    except Exception as error:  # a truncated or foreign file, whatever torchvision's reader makes of it
        raise BadInput(f"{hint}: its files cannot be read ({type(error).__name__}: {error})") from None
    return InMemorySet(name, split, x if x.ndim == 4 else x[..., None], y, classes)


def stored_spec(name: str, root: Path | str | None) -> dict[str, str | None]:
    """{"name", "root"} with absolute paths: how configurations and manifests say where images came from."""
    scheme, colon, path = name.partition(":")
    if colon:
        name = f"{scheme}:{Path(path).resolve()}"
    return {"name": name, "root": str(Path(root).resolve()) if root else None}


def public_name(name: str) -> str:
    """The name of a set without folders of this machine: `npz:/home/me/x.npz` -> `npz:x.npz`. For what is published."""
    scheme, colon, path = name.partition(":")
    return f"{scheme}:{Path(path).name}" if colon else name
