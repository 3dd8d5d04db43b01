"""ONNX Runtime on an NVIDIA GPU: its CUDA provider (`ort-cuda`) and its TensorRT provider (`ort-trt`).

Input and output are torch tensors bound once (IO binding); on fixed shapes the whole network is one CUDA graph. Both
providers refuse to let anything run on the CPU in their place. Knows nothing about votes, noise or certificates.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch

from ..artefacts import Artefact
from ..devices import require_cuda
from ..errors import BadInput, Unavailable
from . import suitable_batch_size
from .base import EngineInfo, logits_from_host
from .ort_session import image_input, onnxruntime, open_session, probe

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
        ort = self._ort = onnxruntime(name)
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self.device)
        self._plans = tempfile.TemporaryDirectory(prefix="smx-ort-trt-")  # built for this run, never found again
        options = ort.SessionOptions()
        if name == "ort-cuda":  # TensorRT leaves shape arithmetic to others, which the next line would refuse
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self._session = open_session(artefact.file, options, self._providers(name))
        self._input, shape, batch = image_input(self._session, artefact.file, batch_size)
        batch = batch or suitable_batch_size(shape, artefact, cuda=True)
        self._output = self._session.get_outputs()[0].name
        self._x = torch.zeros((batch, *shape), dtype=torch.float32, device=self.device)
        classes = probe(self._plain_run, (batch, *shape), artefact.file, "ONNX Runtime")
        self._logits = torch.zeros((batch, classes), dtype=torch.float32, device=self.device)
        self._binding = self._bind()
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # streams are waited for
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
            options={"tf32": False, "cuda_graph": True},
        )

    def _providers(self, name: str) -> list[Any]:
        stream = str(self._stream.cuda_stream)
        cuda = {"device_id": str(self.device.index), "use_tf32": "0", "user_compute_stream": stream,
                "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": "1"}  # fmt: skip
        if name == "ort-cuda":
            return [(_PROVIDERS[name], cuda)]
        tensorrt = {"device_id": str(self.device.index), "user_compute_stream": stream, "trt_cuda_graph_enable": "1",
                    "trt_engine_cache_enable": "1", "trt_engine_cache_path": self._plans.name}  # fmt: skip
        return [(_PROVIDERS[name], tensorrt), ("CUDAExecutionProvider", {**cuda, "enable_cuda_graph": "0"})]

    def _plain_run(self, x_BCHW: np.ndarray) -> Any:
        """Without graph capture, which wants its buffers bound; to learn the number of classes."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, x_BCHW)
        binding.bind_output(self._output, "cuda", self.device.index)
        run_options = self._ort.RunOptions()
        run_options.add_run_config_entry("gpu_graph_id", "-1")  # no capture of this run
        self._session.run_with_iobinding(binding, run_options)
        return binding.copy_outputs_to_cpu()[0]

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
            raise BadInput(f"engine {self.info.name} takes batches of {len(self._x)} only, not {len(x_BCHW)}")
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


def open_engine(
    name: str, artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None
) -> OrtGpuEngine:
    """See `engines.open_engine`."""
    if device == "cpu":
        raise Unavailable(f"engine {name} runs on a GPU; use --device cuda, or --engine ort")
    if threads is not None:
        raise BadInput(f"--threads {threads}: engine {name} runs on a GPU and has none")
    return OrtGpuEngine(name, artefact, batch_size=batch_size)
