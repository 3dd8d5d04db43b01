"""OpenVINO on the CPU: loads .onnx files and its own .xml models, runs float32 batches of one static shape.

The arithmetic is set, never guessed: OpenVINO would otherwise run a float32 model in bfloat16 wherever the processor
can. Knows nothing about votes, noise or certificates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..artefacts import Artefact
from ..errors import BadInput, Unavailable
from ..messages import first_line
from . import suitable_batch_size
from .base import EngineInfo, usable_cores
from .ort_session import check_input_size, probe
from .trial import check_in_child

RUNS = ("openvino", "onnx")


def version(name: str = "openvino") -> str:
    """Of the installed openvino; Unavailable names the extra."""
    return str(_openvino().__version__).partition("-")[0]


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise Unavailable(
            f"engine openvino: cannot be imported ({first_line(error)}); install smoothmix-deploy[openvino]"
        ) from None
    return openvino


class OpenVinoEngine:
    """A model compiled for one batch shape on the CPU."""

    info: EngineInfo

    def __init__(self, artefact: Artefact, *, batch_size: int | None, threads: int | None, low_latency: bool) -> None:
        core = _openvino().Core()
        if artefact.stranger:
            # Of our exports with an attribute, shape or edge altered 1 in 200 crashed OpenVINO
            # 2026.4, none of 8,000 ONNX Runtime.
            check_in_child(artefact.file, "openvino", batch_size or 1)
        try:
            model = core.read_model(str(artefact.file))
        except Exception as error:  # its exceptions have no common base class of their own
            raise BadInput(f"{artefact.file}: OpenVINO cannot load it ({_reason(error)})") from None
        shape, batch = _image_input(model, artefact, batch_size)
        arithmetic = "bf16" if artefact.precision == "bf16" else "f32"
        if arithmetic == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Unavailable(f"engine openvino: this processor has no bfloat16, {artefact.file} needs it")
        cores = threads or usable_cores()
        self.workers = 1 if low_latency else cores
        """Threads that may call `logits` at a time: each call takes a request, and a request runs on one stream."""
        settings = {
            "INFERENCE_PRECISION_HINT": arithmetic, "INFERENCE_NUM_THREADS": str(cores), "NUM_STREAMS": str(self.workers),
        }  # fmt: skip
        try:
            model.reshape({model.inputs[0]: [batch, *shape]})
            with _same_signal_stack():
                compiled = core.compile_model(model, "CPU", settings)
                self._requests: SimpleQueue[Any] = SimpleQueue()
                for _ in range(self.workers):
                    self._requests.put(compiled.create_infer_request())
        except Exception as error:
            raise BadInput(f"{artefact.file}: OpenVINO cannot compile it ({_reason(error)})") from None
        self.info = EngineInfo(
            name="openvino",
            version=version(),
            device="cpu",
            precision=artefact.precision or "as in the file",
            batch_size=batch,
            threads=threads,
            input_shape=shape,
            num_classes=probe(self.logits, (batch, *shape), artefact.file, "OpenVINO"),
            artefact_sha256=artefact.sha256,
            options={"arithmetic": arithmetic},
        )

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]; B is the engine's own."""
        request = self._requests.get()
        try:
            request.infer([x_BCHW], share_inputs=True)
            result: np.ndarray = request.get_output_tensor(0).data
            return result.copy()
        finally:
            self._requests.put(request)


def open_engine(
    name: str, artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None, low_latency: bool
) -> OpenVinoEngine:
    """See `engines.open_engine`."""
    if device == "cuda":
        raise Unavailable("engine openvino runs on the CPU; use --device cpu, or --engine trt")
    return OpenVinoEngine(artefact, batch_size=batch_size, threads=threads, low_latency=low_latency)


def _image_input(model: Any, artefact: Artefact, batch_size: int | None) -> tuple[tuple[int, int, int], int]:
    """((C, H, W), rows of a batch) of the single float32 NCHW input."""
    found = ", ".join(f"{i.any_name}: {i.element_type}{i.partial_shape}" for i in model.inputs) or "none"
    first = model.inputs[0] if len(model.inputs) == 1 else None
    if first is None or len(first.partial_shape) != 4 or first.element_type.get_type_name() != "f32":
        raise BadInput(f"{artefact.file}: expected one float32 image input [batch, C, H, W], found {found}")
    rows, *sizes = first.partial_shape
    if not all(size.is_static for size in sizes):
        raise BadInput(f"{artefact.file}: its image size is not fixed ({found}); export it with fixed C, H, W")
    shape = tuple(size.get_length() for size in sizes)
    fixed = rows.get_length() if rows.is_static else None
    check_input_size((fixed or 1, *shape), artefact.file)
    if fixed and batch_size not in (None, fixed):
        raise BadInput(f"--batch-size {batch_size}: {artefact.file} takes batches of {fixed} only")
    return shape, fixed or batch_size or suitable_batch_size(shape, artefact, cuda=False)


@contextmanager
def _same_signal_stack() -> Iterator[None]:
    """Give the thread its alternative signal stack back.

    OpenVINO sets one of its own where processors have wide registers and unmaps it later: the next Ctrl-C, whose handler
    Python runs there, would crash the process (seen with 2026.4).
    """
    try:
        sigaltstack = ctypes.CDLL(None).sigaltstack
    except (AttributeError, OSError, TypeError):  # not a POSIX system
        yield
        return
    before = ctypes.create_string_buffer(64)  # a stack_t, and room to spare
    sigaltstack(None, before)
    try:
        yield
    finally:
        sigaltstack(before, None)


def _reason(error: Exception) -> str:
    """Its messages begin with a trail of source lines: the last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return first_line((said or lines or [type(error).__name__])[-1])
