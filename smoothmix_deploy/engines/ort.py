"""ONNX Runtime on the CPU: loads an .onnx file, runs float32 batches.

Knows nothing about votes, noise or certificates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..artefacts import Artefact
from ..errors import BadInput, Unavailable
from . import suitable_batch_size
from .base import EngineInfo

RUNS = ("onnx",)


def version() -> str:
    """Of the installed onnxruntime; Unavailable names the extra."""
    return str(_onnxruntime().__version__)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable(
            f"engine ort: onnxruntime cannot be imported ({error}); "
            "install smoothmix-deploy[cpu] (or [gpu] on a machine with an NVIDIA GPU)"
        ) from None
    return onnxruntime


class OrtEngine:
    """An inference session on the CPU provider."""

    info: EngineInfo

    def __init__(self, artefact: Artefact, *, batch_size: int | None, threads: int | None) -> None:
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # problems come back as exceptions; warnings would garble the terminal
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(artefact.file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base class of their own
            raise BadInput(f"{artefact.file}: ONNX Runtime cannot load it ({_short(error)})") from None
        self._input, shape, fixed_batch = _image_input(self._session, artefact.file)
        batch = fixed_batch or batch_size or suitable_batch_size(shape, artefact, cuda=False)
        if fixed_batch and batch_size not in (None, fixed_batch):
            raise BadInput(f"--batch-size {batch_size}: {artefact.file} takes batches of {fixed_batch} only")
        self._outputs = [self._session.get_outputs()[0].name]
        probe = self._probe(np.zeros((batch, *shape), np.float32), artefact.file)
        self.info = EngineInfo(
            name="ort",
            version=str(ort.__version__),
            device="cpu",
            precision=artefact.precision or "as in the file",
            batch_size=batch,
            threads=threads,
            input_shape=shape,
            num_classes=probe.shape[1],
            artefact_sha256=artefact.sha256,
        )

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]."""
        result: np.ndarray = self._session.run(self._outputs, {self._input: x_BCHW})[0]
        return result

    def _probe(self, x_BCHW: np.ndarray, file: Path) -> np.ndarray:
        """One run on zeros: finds out the classes, and that the file is a classifier at all."""
        try:
            logits = self.logits(x_BCHW)
        except Exception as error:
            raise BadInput(
                f"{file}: ONNX Runtime cannot run a batch of shape {x_BCHW.shape} ({_short(error)})"
            ) from None
        good = isinstance(logits, np.ndarray) and logits.dtype.kind == "f" and logits.ndim == 2
        if not good or len(logits) != len(x_BCHW) or logits.shape[1] < 2:
            found = f"{logits.dtype} {logits.shape}" if isinstance(logits, np.ndarray) else type(logits).__name__
            raise BadInput(f"{file}: its output is {found}, expected class scores [{len(x_BCHW)}, K] with K >= 2")
        return logits


def open_engine(artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None) -> OrtEngine:
    """See `engines.open_engine`."""
    if device == "cuda":
        raise Unavailable("engine ort runs on the CPU; use --device cpu, or --engine torch with a run folder")
    return OrtEngine(artefact, batch_size=batch_size, threads=threads)


def _image_input(session: Any, file: Path) -> tuple[str, tuple[int, int, int], int | None]:
    """(name, (C, H, W), batch size where the file fixes it) of the single float32 NCHW input."""
    inputs = session.get_inputs()
    found = ", ".join(f"{i.name}: {i.type}{i.shape}" for i in inputs) or "none"
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise BadInput(f"{file}: expected one float32 image input [batch, C, H, W], found {found}")
    batch, *shape = inputs[0].shape
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise BadInput(f"{file}: its image size is not fixed ({found}); export it with fixed C, H, W")
    return (
        inputs[0].name,
        (shape[0], shape[1], shape[2]),
        batch if isinstance(batch, int) and batch > 0 else None,
    )


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
