"""ONNX Runtime on the CPU: loads an .onnx file, runs float32 batches.

Knows nothing about votes, noise or certificates. What it has in common with the GPU providers is in `ort_session`.
"""

from __future__ import annotations

import numpy as np

from ..artefacts import Artefact
from ..errors import Unavailable
from . import suitable_batch_size
from .base import EngineInfo, usable_cores
from .ort_session import image_input, int8_kernels_saturate, onnxruntime, open_session, probe
from .trial import check_in_child

RUNS = ("onnx",)


def version(name: str = "ort") -> str:
    """Of the installed onnxruntime; Unavailable names the extra."""
    return str(onnxruntime("ort").__version__)


class OrtEngine:
    """An inference session on the CPU provider."""

    info: EngineInfo

    def __init__(self, artefact: Artefact, *, batch_size: int | None, threads: int | None, low_latency: bool) -> None:
        ort = onnxruntime("ort")
        if artefact.stranger:
            check_in_child(artefact.file)
        options = ort.SessionOptions()
        cores = threads or usable_cores()
        options.intra_op_num_threads = cores if low_latency else 1
        self.workers = 1 if low_latency else cores
        """Threads that may call `logits` at a time: sessions are safe to share."""
        if artefact.precision not in ("fp32", "fp16", "bf16") and int8_kernels_saturate():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if artefact.precision == "fp8":  # its fused kernels take the scales of fp8 for something else (seen with 1.32)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = open_session(artefact.file, options, ["CPUExecutionProvider"])
        self._input, shape, batch = image_input(self._session, artefact.file, batch_size)
        batch = batch or suitable_batch_size(shape, artefact, cuda=False)
        self._outputs = [self._session.get_outputs()[0].name]
        self.info = EngineInfo(
            name="ort",
            version=str(ort.__version__),
            device="cpu",
            precision=artefact.precision or "as in the file",
            batch_size=batch,
            threads=threads,
            input_shape=shape,
            num_classes=probe(self.logits, (batch, *shape), artefact.file, "ONNX Runtime"),
            artefact_sha256=artefact.sha256,
        )

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]."""
        result: np.ndarray = self._session.run(self._outputs, {self._input: x_BCHW})[0]
        return result


def open_engine(
    name: str, artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None, low_latency: bool
) -> OrtEngine:
    """See `engines.open_engine`."""
    if device == "cuda":
        raise Unavailable("engine ort runs on the CPU; use --device cpu, or --engine ort-cuda, ort-trt or trt")
    return OrtEngine(artefact, batch_size=batch_size, threads=threads, low_latency=low_latency)
