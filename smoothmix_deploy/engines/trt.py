"""TensorRT: runs the plan of an export folder on the GPU it was built for.

A plan is code for one TensorRT and one kind of GPU. What the manifest says of it is checked before a byte is loaded;
anything foreign is refused with the command that rebuilds it. Input and output are static buffers, the network is one
CUDA graph, where TensorRT allows it, on a stream of its own. Knows nothing about votes, noise or certificates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..artefacts import Artefact
from ..devices import require_cuda
from ..errors import BadInput, CheckFailed, Unavailable
from ..messages import first_line
from . import trt_bindings
from .base import EngineInfo, logits_from_host

RUNS = ("plan",)
_WARM_UP_RUNS = 3


def version(name: str = "trt") -> str:
    """Of the installed TensorRT packages; Unavailable says what is missing: the package or the GPU."""
    found = trt_bindings.installed()
    require_cuda(f"engine trt ({', '.join(found)} can build plans here, not run them)")
    return ", ".join(f"{package} {number}" for package, number in found.items())


class TensorRtEngine:
    """A deserialised plan, at the one batch size that it is run with."""

    info: EngineInfo

    def __init__(self, artefact: Artefact, *, batch_size: int | None) -> None:
        package = check_plan(artefact)
        self._file = artefact.file
        trt = trt_bindings.load(package)
        self.device = torch.device("cuda", torch.cuda.current_device())
        # Runtime, engine, config and context live as long as this object: not every TensorRT keeps them for each other.
        self._logger = trt_bindings.make_logger(trt)
        try:
            self._runtime = trt.Runtime(self._logger)
        except TypeError:  # "factory function returned nullptr": the driver is too old for this TensorRT, or not there
            raise Unavailable(
                f"engine trt: {package} cannot start ({self._logger.errors() or 'old driver?'})"
            ) from None
        self._engine = self._runtime.deserialize_cuda_engine(artefact.file.read_bytes())
        if self._engine is None:
            raise CheckFailed(
                f"{artefact.file}: {package} cannot load it ({self._logger.errors() or 'no reason given'}); "
                f"rebuild it: {artefact.rebuild_command}"
            )
        self._config = _runtime_config(trt, self._engine)
        self._context = self._engine.create_execution_context(self._config)
        if self._context is None:
            raise BadInput(
                f"{artefact.file}: no room to run it on this GPU ({self._logger.errors() or 'no reason given'})"
            )
        if self._engine.num_io_tensors != 2:
            raise BadInput(f"{artefact.file}: expected one image input and one output")
        names = {self._engine.get_tensor_mode(n): n for n in map(self._engine.get_tensor_name, range(2))}
        if len(names) != 2:
            raise BadInput(f"{artefact.file}: expected one image input and one output")
        self._input, self._output = names[trt.TensorIOMode.INPUT], names[trt.TensorIOMode.OUTPUT]
        if any(self._engine.get_tensor_dtype(name) != trt.DataType.FLOAT for name in (self._input, self._output)):
            raise BadInput(f"{artefact.file}: expected float32 input and output")
        shape, most = self._input_shape(artefact)
        batch = batch_size or most
        if batch > most:
            raise BadInput(f"--batch-size {batch}: the plan {artefact.file} was built for at most {most}")
        self._stream = torch.cuda.Stream(self.device)
        self._x = torch.zeros((batch, *shape), dtype=torch.float32, device=self.device)
        self._logits = self._bind(artefact)
        self._graph = self._capture()
        self.info = EngineInfo(
            name="trt",
            version=f"{package} {trt.__version__}",
            device=f"cuda ({torch.cuda.get_device_name(self.device)})",
            precision=artefact.precision or "as in the file",
            batch_size=batch,
            threads=None,
            input_shape=shape,
            num_classes=self._logits.shape[1],
            artefact_sha256=artefact.sha256,
            options={"tf32": bool((artefact.plan or {}).get("tf32")), "cuda_graph": self._graph is not None},
        )

    def _input_shape(self, artefact: Artefact) -> tuple[tuple[int, int, int], int]:
        """((C, H, W), most rows) of the only optimisation profile."""
        _, _, most = self._engine.get_tensor_profile_shape(self._input, 0)
        rows, *shape = (int(size) for size in most)
        if len(shape) != 3:
            raise BadInput(f"{artefact.file}: its input is {list(most)}, expected images [batch, C, H, W]")
        return (shape[0], shape[1], shape[2]), rows

    def _bind(self, artefact: Artefact) -> torch.Tensor:
        """Fix shapes and addresses; the output buffer."""
        rows = len(self._x)
        if not self._context.set_input_shape(self._input, tuple(self._x.shape)):
            raise BadInput(
                f"--batch-size {rows}: the plan {artefact.file} does not take it ({self._logger.errors() or 'no reason given'})"
            )
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise BadInput(f"{artefact.file}: TensorRT cannot infer its shapes ({first_line(error)})") from None
        shape = tuple(self._context.get_tensor_shape(self._output))
        if missing or len(shape) != 2 or shape[0] != rows or shape[1] < 2:
            raise BadInput(f"{artefact.file}: its output is {shape}, expected class scores [{rows}, K]")
        logits = torch.zeros(shape, dtype=torch.float32, device=self.device)
        self._context.set_tensor_address(self._input, self._x.data_ptr())
        self._context.set_tensor_address(self._output, logits.data_ptr())
        return logits

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BadInput(f"{self._file}: TensorRT cannot run it ({self._logger.errors() or 'no reason given'})")

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        """Warm up, as kernels are loaded or compiled by the first runs, then record one run.

        None: TensorRT for RTX says of this plan that it cannot be recorded (it may allocate memory while it runs).
        """
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):
                self._enqueue()
        self._stream.synchronize()
        recordable = getattr(self._context, "is_stream_capturable", None)
        if recordable is not None and not recordable(self._stream.cuda_stream):
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._enqueue()  # raises: what was recorded until then would replay without complaint
        except RuntimeError as error:
            raise BadInput(f"{self._file}: cannot be recorded as a CUDA graph ({first_line(error)})") from None
        return graph

    def device_logits(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """See `DeviceEngine`. Batches of the engine's own size only."""
        if x_BCHW.shape != self._x.shape:
            raise BadInput(f"engine trt takes batches of {len(self._x)} only, not {len(x_BCHW)}")
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            self._x.copy_(x_BCHW, non_blocking=True)
            if self._graph is None:
                self._enqueue()
            else:
                self._graph.replay()
        caller.wait_stream(self._stream)
        return self._logits

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]."""
        return logits_from_host(self, x_BCHW)


def check_plan(artefact: Artefact) -> str:
    """The TensorRT package that runs this plan here. CheckFailed: foreign plan; Unavailable: package missing."""
    plan = artefact.plan or {}
    package, built_with = str(plan.get("package")), plan.get("version")
    if package not in trt_bindings.PACKAGES:
        raise CheckFailed(f"{artefact.described_by}: does not say which TensorRT built {artefact.file.name}")
    trt_bindings.load(package)
    found = trt_bindings.libraries_version(package)
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    targets = plan.get("compute_capabilities")
    wrong = None
    if found != built_with:
        wrong = f"was built with {package} {built_with}, here is {found}"
    elif not isinstance(targets, list) or capability not in targets:
        wrong = (
            f"was built for compute capability {targets}, this GPU ({torch.cuda.get_device_name()}) has {capability}"
        )
    elif plan.get("gpu") not in (None, torch.cuda.get_device_name()):
        wrong = f"was built on {plan['gpu']}, this GPU is {torch.cuda.get_device_name()}"
    if wrong:
        raise CheckFailed(f"{artefact.file}: a foreign plan: it {wrong}; rebuild it: {artefact.rebuild_command}")
    return package


def _runtime_config(trt: Any, engine: Any) -> Any:
    """All kernels for the batch shape are compiled before the first run, none are exchanged later.

    TensorRT for RTX would otherwise start with general kernels and swap in special ones while it runs: a certificate
    needs one function from the first sample to the last.
    """
    config = engine.create_runtime_config()
    if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return config


def open_engine(
    name: str, artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None, low_latency: bool
) -> TensorRtEngine:
    """See `engines.open_engine`."""
    if device == "cpu":
        raise Unavailable("engine trt runs on a GPU; use --device cuda, or --engine ort")
    if threads is not None:
        raise BadInput(f"--threads {threads}: engine trt runs on a GPU and has none")
    return TensorRtEngine(artefact, batch_size=batch_size)
