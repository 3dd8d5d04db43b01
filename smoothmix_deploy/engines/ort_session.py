"""What ONNX Runtime's engines share: opening a session that is what was asked for, and looking at its input.

Knows nothing about devices' memory, votes or noise.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, Unavailable
from ..messages import first_line
from ..records import MOST_CLASSES, MOST_NUMBERS


def onnxruntime(engine: str) -> Any:
    """The module; Unavailable names the extra."""
    try:
        import onnxruntime as module
    except ImportError as error:
        extra = "[cpu] (or [gpu] on a machine with an NVIDIA GPU)" if engine == "ort" else "[gpu]"
        raise Unavailable(
            f"engine {engine}: onnxruntime cannot be imported ({first_line(error)}); install smoothmix-deploy{extra}"
        ) from None
    return module


@lru_cache(maxsize=1)
def int8_kernels_saturate() -> bool:
    """Whether int8 products go wrong on this processor unless ONNX Runtime is told to be careful, at half the speed.

    On x86 processors without VNNI its kernels add pairs of products in 16 bits. Found out by a product that overflows
    them, not by the processor's name: virtual machines and emulators do not always say what they can.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = 64
    weights = numpy_helper.from_array(np.full((size, size), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [size, size])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime("ort").InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"], enable_fallback=0
    )
    found: np.ndarray = session.run(None, {"x": np.full((size, size), 255, np.uint8)})[0]
    return bool((found != 255 * 127 * size).any())


def open_session(file: Path, options: Any, providers: list[Any]) -> Any:
    """A session on the first of `providers`, and on nothing else in its place. BadInput if the file does not load."""
    ort = onnxruntime("ort")
    options.log_severity_level = 4  # problems come back as exceptions; warnings would garble the terminal
    ort.set_default_logger_severity(4)  # a provider that does not load is said here, not by the session's logger
    asked = providers[0] if isinstance(providers[0], str) else providers[0][0]
    try:
        session = ort.InferenceSession(str(file), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base class of their own
        _check_provider(ort, asked)
        raise BadInput(f"{file}: ONNX Runtime cannot load it ({first_line(error)})") from None
    try:
        for value in (*session.get_inputs(), *session.get_outputs()):
            value.name, value.type, value.shape  # noqa: B018 - raises where a name is no text
    except UnicodeDecodeError:
        raise BadInput(f"{file}: the name of an input or output is no UTF-8 text: a damaged file") from None
    found = session.get_providers()[0]
    if found != asked:  # what it does on a machine without the libraries: another provider, without a word
        _check_provider(ort, asked)
        raise Unavailable(f"{file}: ONNX Runtime would run it on {found} instead of {asked}; nothing was run")
    return session


def _check_provider(ort: Any, provider: str) -> None:
    """Unavailable, naming the library that is missing, if a GPU provider does not load: not the file's fault.

    Only after ONNX Runtime itself has tried: loaded before it, a provider finds no host and crashes.
    """
    name = provider.removesuffix("ExecutionProvider").lower()
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    if not library.exists():
        return
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(
            f"ONNX Runtime's {provider} does not load ({first_line(error)}); it needs smoothmix-deploy[gpu]"
            + (" with tensorrt 10" if name == "tensorrt" else "")
        ) from None


def image_input(session: Any, file: Path, batch_size: int | None) -> tuple[str, tuple[int, int, int], int | None]:
    """(name, (C, H, W), rows of a batch) of the single float32 NCHW input; rows None: not said by anybody.

    BadInput if it is no such input, or if the file fixes the rows at another number than `batch_size`.
    """
    inputs = session.get_inputs()
    found = ", ".join(f"{i.name}: {i.type}{i.shape}" for i in inputs) or "none"
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise BadInput(
            f"{file}: expected one float32 image input [batch, C, H, W], found {found}; smx export {file} adapts other layouts"
        )
    batch, *shape = inputs[0].shape
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise BadInput(f"{file}: its image size is not fixed ({found}); export it with fixed C, H, W")
    fixed = batch if isinstance(batch, int) and batch > 0 else None
    check_input_size((fixed or 1, *shape), file)
    if fixed and batch_size not in (None, fixed):
        raise BadInput(f"--batch-size {batch_size}: {file} takes batches of {fixed} only")
    return inputs[0].name, (shape[0], shape[1], shape[2]), fixed or batch_size


def check_input_size(shape: tuple[int, ...], file: Path) -> None:
    """BadInput for a batch or an image that nobody's network takes: zeros of that shape would fill the memory."""
    if math.prod(shape[1:]) > MOST_NUMBERS or math.prod(shape) > 64 * MOST_NUMBERS:
        raise BadInput(f"{file}: takes batches of shape {shape}: more than any classifier's; a damaged file?")


def probe(logits: Callable[[np.ndarray], Any], shape: tuple[int, ...], file: Path, runtime: str) -> int:
    """One run on zeros: the number of classes. BadInput if it cannot run, or is no classifier at all."""
    try:
        scores = logits(np.zeros(shape, np.float32))
    except Exception as error:
        raise BadInput(f"{file}: {runtime} cannot run a batch of shape {shape} ({first_line(error)})") from None
    good = isinstance(scores, np.ndarray) and scores.dtype.kind == "f" and scores.ndim == 2
    if not good or len(scores) != shape[0] or not 2 <= scores.shape[1] <= MOST_CLASSES:
        found = f"{scores.dtype} {scores.shape}" if isinstance(scores, np.ndarray) else type(scores).__name__
        raise BadInput(f"{file}: its output is {found}, expected class scores [{shape[0]}, K] with K >= 2")
    return int(scores.shape[1])
