"""Engines by name. Each is one module, imported when it is first asked for; adding one is that file and a line here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..artefacts import Artefact
from ..errors import BadInput, CheckFailed, Unavailable
from .base import NO_VOTE, DeviceEngine, Engine, EngineInfo, concurrent_calls, device_votes, on_device, votes

__all__ = [
    "ENGINES",
    "NO_VOTE",
    "DeviceEngine",
    "Engine",
    "EngineInfo",
    "available",
    "candidates",
    "concurrent_calls",
    "device_votes",
    "on_device",
    "open_engine",
    "votes",
]


@dataclass(frozen=True)
class Registered:
    """Where an engine's code is and what it is for. `device`: "cpu", "cuda" or "any"."""

    module: str
    device: str
    about: str


ENGINES = {  # best first
    "trt": Registered("trt", "cuda", "TensorRT plans"),
    "ort-cuda": Registered("ort_gpu", "cuda", "ONNX files, ONNX Runtime's CUDA provider"),
    "ort-trt": Registered("ort_gpu", "cuda", "ONNX files, ONNX Runtime's TensorRT provider"),
    "ort": Registered("ort", "cpu", "ONNX files, ONNX Runtime"),
    "openvino": Registered("openvino", "cpu", "OpenVINO models and ONNX files, OpenVINO"),
    "torch": Registered("torch_eager", "any", "run folders, PyTorch"),
    "torch-compile": Registered("torch_eager", "any", "run folders, PyTorch, compiled"),
}

_MOST_THREADS = 1024
_MOST_ROWS = 1 << 20


def _module(name: str) -> Any:
    if name not in ENGINES:
        raise BadInput(f"--engine {name}: unknown; known engines: {', '.join(ENGINES)}")
    return import_module(f".{ENGINES[name].module}", __package__)


def available(name: str) -> tuple[str | None, str]:
    """(version, "") of an engine that works here, or (None, why not and which extra brings it)."""
    try:
        return _module(name).version(name), ""
    except Unavailable as error:
        return None, str(error)


def candidates(artefact: Artefact, device: str = "auto") -> list[str]:
    """The engines that run this kind of artefact on `device`, best first, installed or not."""
    return [
        name
        for name, entry in ENGINES.items()
        if artefact.kind in _module(name).RUNS and (device == "auto" or entry.device in ("any", device))
    ]


def open_engine(
    artefact: Artefact,
    name: str | None = None,
    *,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    low_latency: bool = False,
) -> Engine:
    """Load `artefact` on the engine called `name` (None: the best that works).

    `batch_size` None chooses one that suits the input's size. `low_latency`: all cores for one call at a time; otherwise
    engines on CPUs take as many calls at a time as there are cores (`base.concurrent_calls`). Raises BadInput (wrong kind
    of artefact, malformed file, impossible batch size), CheckFailed (a plan that never passed the parity gate, or is
    foreign to this GPU) or Unavailable (engine or device missing).
    """
    if batch_size is not None and batch_size < 1:
        raise BadInput(f"--batch-size {batch_size}: must be at least 1")
    if batch_size is not None and batch_size > _MOST_ROWS:
        raise BadInput(f"--batch-size {batch_size}: must be at most {_MOST_ROWS}")
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise BadInput(f"--threads {threads}: must be between 1 and {_MOST_THREADS}")
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device {device}: must be auto, cpu or cuda")
    if name is not None:
        _check_kind(artefact, name)
        version, reason = available(name)
        if version is None:
            raise Unavailable(reason)
    if batch_size is not None and artefact.max_batch is not None and batch_size > artefact.max_batch:
        raise BadInput(f"--batch-size {batch_size}: {artefact.path} was exported for at most {artefact.max_batch}")
    if artefact.gated is False:
        raise CheckFailed(
            f"{artefact.file}: was built where it could not run, so it has not passed the parity gate; "
            f"build it on this machine: {artefact.rebuild_command}"
        )
    options = {"batch_size": batch_size, "device": device, "threads": threads, "low_latency": low_latency}
    engine: Engine
    if name is not None:
        engine = _module(name).open_engine(name, artefact, **options)
    else:
        engine = _open_best(artefact, device, options)
    names, classes = artefact.class_names, engine.info.num_classes
    if names is not None and len(names) != classes:
        raise BadInput(f"{artefact.described_by}: class_names has {len(names)} names, the model has {classes} classes")
    return engine


def _open_best(artefact: Artefact, device: str, options: dict[str, Any]) -> Engine:
    """The best engine on this machine that runs `artefact`; Unavailable with every reason if there is none."""
    reasons = []
    for name in candidates(artefact, device):
        version, reason = available(name)
        if version is not None:
            try:
                engine: Engine = _module(name).open_engine(name, artefact, **options)
                return engine
            except Unavailable as error:  # a library that is missed only when it is needed
                reason = str(error)
        reasons.append(reason)
    none = f"{artefact.path}: no engine runs this kind of artefact with --device {device}"
    remedy = "; or use --device cpu" if device == "cuda" else ""
    raise Unavailable(("; ".join(reasons) or none) + remedy)


def _check_kind(artefact: Artefact, name: str) -> None:
    """BadInput, with what to do instead, unless engine `name` runs this kind of artefact."""
    runs = _module(name).RUNS
    if artefact.kind in runs:
        return
    instead = candidates(artefact, "cpu") or candidates(artefact)
    format = {"plan": "trt", "openvino": "openvino", "onnx": "onnx"}.get(runs[0])
    if format and artefact.kind in ("run", "onnx"):
        remedy = (
            f"export it first (smx export {artefact.path} --format {format} --out DIR) or use --engine {instead[0]}"
        )
    else:
        remedy = f"use --engine {instead[0]}"
    raise BadInput(f"--engine {name} does not run {artefact.description}: {remedy}")


def suitable_batch_size(input_shape: tuple[int, int, int], artefact: Artefact, *, cuda: bool) -> int:
    """A power of two that makes batches of at most 128 KB (48 MB on a GPU), within 32 .. 512 (1024) rows.

    On CPUs batches whose activations stay in the caches are fastest (measured: docs/decisions.md).
    """
    budget = (48 << 20) if cuda else (128 << 10)
    rows = max(1, budget // (4 * math.prod(input_shape)))
    size = min(1024 if cuda else 512, max(32, 1 << (rows.bit_length() - 1)))
    return min(size, artefact.max_batch or size)
