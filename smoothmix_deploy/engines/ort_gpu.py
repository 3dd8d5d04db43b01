"""ONNX Runtime on an NVIDIA GPU: its CUDA provider (`ort-cuda`) and its TensorRT provider (`ort-trt`).

Input and output are torch tensors bound once (IO binding); on fixed shapes the whole network is one CUDA graph. Both
providers refuse to let anything run on the CPU in their place. Knows nothing about votes, noise or certificates.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import numpy as np
import torch

from ..artefacts import Artefact
from ..devices import require_cuda
from ..errors import BadInput, Unavailable
from ..messages import first_line
from . import suitable_batch_size
from .base import EngineInfo, logits_from_host
from .ort_session import image_input, onnxruntime, open_session

RUNS = ("onnx",)
_PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-trt": "TensorrtExecutionProvider"}


def version(name: str = "ort-cuda") -> str:
    """Of the installed onnxruntime-gpu; Unavailable says what is missing: the package, the provider or the GPU."""
    ort = onnxruntime(name)
    if _PROVIDERS[name] not in ort.get_available_providers():
        raise Unavailable(
            f"engine {name}: the installed onnxruntime {ort.__version__} has no {_PROVIDERS[name]}; "
            "install smoothmix-deploy[gpu] in an environment without onnxruntime"
        )
    require_cuda(f"engine {name}")
    return str(ort.__version__)


class OrtGpuEngine:
    """A session whose input and output stay on the GPU."""

    info: EngineInfo

    def __init__(self, name: str, artefact: Artefact, *, batch_size: int | None) -> None:
        ort = onnxruntime(name)
        self._name = name
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self.device)
        _preload(ort, name)
        options = ort.SessionOptions()
        if name == "ort-cuda":  # TensorRT leaves shape arithmetic to others, which the next line would refuse
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self._session = open_session(artefact.file, options, self._providers(name))
        self._input, shape, batch = image_input(self._session, artefact.file, batch_size)
        batch = batch or suitable_batch_size(shape, artefact, cuda=True)
        self._output, classes = self._scores(artefact)
        self._x = torch.zeros((batch, *shape), dtype=torch.float32, device=self.device)
        self._logits = torch.zeros((batch, classes), dtype=torch.float32, device=self.device)
        self._binding = self._bind()
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # streams are waited for
        self._first_run(artefact)
        self.info = EngineInfo(
            name=name,
            version=str(ort.__version__),
            device=f"cuda ({torch.cuda.get_device_name(self.device)})",
            precision=artefact.precision or "as in the file",
            batch_size=batch,
            threads=None,
            input_shape=shape,
            num_classes=classes,
            artefact_sha256=artefact.sha256,
            # The TensorRT provider has no switch for TF32, and TensorRT's default is to use it.
            options={"tf32": name == "ort-trt", "cuda_graph": True},
        )

    def _providers(self, name: str) -> list[Any]:
        stream = str(self._stream.cuda_stream)
        cuda = {"device_id": str(self.device.index), "use_tf32": "0", "user_compute_stream": stream,
                "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": "1"}  # fmt: skip
        if name == "ort-cuda":
            return [(_PROVIDERS[name], cuda)]
        tensorrt = {"device_id": str(self.device.index), "user_compute_stream": stream, "trt_cuda_graph_enable": "1"}
        return [(_PROVIDERS[name], tensorrt), ("CUDAExecutionProvider", {**cuda, "enable_cuda_graph": "0"})]

    def _scores(self, artefact: Artefact) -> tuple[str, int]:
        """(name, number of classes) of the output, as the file declares it.

        Not learnt from a run: any run may be the one that is captured (the TensorRT provider does not look at
        gpu_graph_id), and later ones would then replay on that run's buffers.
        """
        output = self._session.get_outputs()[0]
        shape = output.shape
        if output.type != "tensor(float)" or len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 2:
            raise BadInput(
                f"{artefact.file}: its output is {output.type}{shape}, expected float32 class scores [batch, K] with "
                "a fixed K >= 2"
            )
        return output.name, shape[1]

    def _first_run(self, artefact: Artefact) -> None:
        """Warm up and record the graph (ONNX Runtime does both in one call), so that what can fail fails here."""
        try:
            self.device_logits(torch.zeros_like(self._x))
            torch.cuda.synchronize(self.device)
        except Exception as error:  # see open_session
            raise BadInput(
                f"{artefact.file}: ONNX Runtime cannot run a batch of shape {tuple(self._x.shape)} ({first_line(error)})"
            ) from None

    def _bind(self) -> Any:
        binding = self._session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, self._input, self._x),
            (binding.bind_output, self._output, self._logits),
        ):
            bind(name, "cuda", self.device.index, np.float32, tuple(tensor.shape), tensor.data_ptr())
        return binding

    def device_logits(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """See `DeviceEngine`. Batches of the engine's own size only."""
        if x_BCHW.shape != self._x.shape:
            raise BadInput(f"engine {self._name} takes batches of {len(self._x)} only, not {len(x_BCHW)}")
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            self._x.copy_(x_BCHW)
            self._session.run_with_iobinding(self._binding, self._run_options)
        caller.wait_stream(self._stream)
        return self._logits

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]."""
        return logits_from_host(self, x_BCHW)


def _preload(ort: Any, name: str) -> None:
    """Load the libraries that pip put where the dynamic linker does not look; what is missing shows in open_session."""
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()  # since 1.21
    if name == "ort-trt":
        with contextlib.suppress(Exception):
            importlib.import_module("tensorrt")  # its libnvinfer.so.10


def open_engine(
    name: str, artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None, low_latency: bool
) -> OrtGpuEngine:
    """See `engines.open_engine`."""
    if device == "cpu":
        raise Unavailable(f"engine {name} runs on a GPU; use --device cuda, or --engine ort")
    if threads is not None:
        raise BadInput(f"--threads {threads}: engine {name} runs on a GPU and has none")
    return OrtGpuEngine(name, artefact, batch_size=batch_size)
