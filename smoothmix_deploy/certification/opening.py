"""An engine for a run: loaded, fitting the images, self-tested, at a batch size that its device has memory for.

The batch shape is part of what is certified and stands in the manifest, so it can shrink here and never later.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..artefacts import Artefact
from ..data import ImageSet
from ..engines import Engine, EngineInfo, open_engine, suitable_batch_size
from ..errors import BadInput, SmxError, Stopped
from ..messages import first_line
from .self_test import SelfTest, self_test
from .settings import Note

_OUT_OF_MEMORY = ("out of memory", "allocate memory", "alloc_failed", "outofmemory", "bad_alloc")


def open_tested(
    artefact: Artefact, images: ImageSet, indices: range, *, engine: str | None, batch_size: int | None, device: str,
    threads: int | None, sigma: float, key: str, noise: str, may_halve: bool, note: Note,
) -> tuple[Engine, SelfTest]:  # fmt: skip
    """The engine and what its self-test saw. Out of memory: half the batch, said in a note, if `may_halve`.

    Raises as `open_engine` and `self_test` do, and Stopped where memory does not suffice.
    """
    while True:
        size = batch_size
        try:
            runner = open_engine(artefact, engine, batch_size=batch_size, device=device, threads=threads)
            check_images_fit(runner, images)
            size = runner.info.batch_size
            return runner, self_test(runner, images, indices, sigma=sigma, key=key, noise=noise)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size = size or suitable_batch_size(images.shape, artefact, cuda=True)
            if size == 1 or not may_halve:
                remedy = (
                    "" if may_halve else "; the file was begun with them, so use a device with more memory, or --out"
                )
                raise Stopped(f"out of memory with batches of {size} ({first_line(error)}){remedy}") from None
        runner = None  # type: ignore[assignment]  # its memory, before the next one asks for some
        _free_memory()
        batch_size = size // 2
        note(f"out of memory with batches of {size}: trying {batch_size}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a runtime says, in whichever words, that its device has no memory left."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def stops_where_engine_fails(info: EngineInfo) -> Iterator[None]:
    """A runtime's error after the self-test (a GPU that is lost, memory that another process took) becomes Stopped."""
    try:
        yield
    except (SmxError, AssertionError):
        raise
    except Exception as error:  # runtimes' exceptions have no common base class
        memory = "; if it has too little memory for this batch, begin again with a smaller --batch-size"
        raise Stopped(
            f"engine {info.name} ({info.device}) failed while sampling: {first_line(error)}; votes so far are kept: "
            f"run the same command with --resume{memory if is_out_of_memory(error) else ''}"
        ) from error


def check_images_fit(engine: Engine, images: ImageSet) -> None:
    """BadInput unless the images have the engine's shape and the labels are among its classes."""
    if images.shape != engine.info.input_shape:
        raise BadInput(
            f"--data {images.name}: images are {_times(images.shape)}, the model takes {_times(engine.info.input_shape)}"
        )
    highest = int(images.labels.max())
    if highest >= engine.info.num_classes:
        raise BadInput(
            f"--data {images.name}: has label {highest}, the model has classes 0 .. {engine.info.num_classes - 1}"
        )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
