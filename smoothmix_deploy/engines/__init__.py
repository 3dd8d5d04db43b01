"""Engines by name. Each is one module, imported when it is first asked for; adding one is that file and a line here."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from ..artefacts import Artefact
from ..errors import BadInput, Unavailable
from .base import NO_VOTE, Engine, EngineInfo, votes

__all__ = [
    "ENGINES",
    "NO_VOTE",
    "Engine",
    "EngineInfo",
    "available",
    "default_engine",
    "open_engine",
    "votes",
]

ENGINES = {
    # name: (module, what it runs), best first
    "ort": ("ort", "ONNX files on ONNX Runtime, CPU"),
    "torch": ("torch_eager", "run folders in PyTorch, CPU or CUDA"),
}

_MOST_THREADS = 1024


def _module(name: str) -> Any:
    if name not in ENGINES:
        raise BadInput(f"--engine {name}: unknown; known engines: {', '.join(ENGINES)}")
    return import_module(f".{ENGINES[name][0]}", __package__)


def available(name: str) -> tuple[str | None, str]:
    """(version, "") of an engine that works here, or (None, why not and which extra brings it)."""
    try:
        return _module(name).version(), ""
    except Unavailable as error:
        return None, str(error)


def default_engine(artefact: Artefact) -> str:
    """The best engine on this machine that runs `artefact`; Unavailable with every reason if there is none."""
    reasons = []
    for name in ENGINES:
        if artefact.kind not in _module(name).RUNS:
            continue
        version, reason = available(name)
        if version is not None:
            return name
        reasons.append(reason)
    raise Unavailable("; ".join(reasons) or f"{artefact.path}: no engine runs this kind of artefact ({artefact.kind})")


def open_engine(
    artefact: Artefact,
    name: str | None = None,
    *,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Load `artefact` on the engine called `name` (None: the best that works).

    `batch_size` None chooses one that suits the input's size. Raises BadInput (wrong kind of artefact, malformed
    file, impossible batch size) or Unavailable (engine or device missing).
    """
    if batch_size is not None and batch_size < 1:
        raise BadInput(f"--batch-size {batch_size}: must be at least 1")
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise BadInput(f"--threads {threads}: must be between 1 and {_MOST_THREADS}")
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device {device}: must be auto, cpu or cuda")
    name = name or default_engine(artefact)
    module = _module(name)
    if artefact.kind not in module.RUNS:
        others = [other for other in ENGINES if artefact.kind in _module(other).RUNS]
        remedy = f"use --engine {others[0]}" if others else "export it first"
        if artefact.kind == "run":
            remedy = f"export it first (smx export {artefact.path} --out DIR) or use --engine torch"
        raise BadInput(f"--engine {name} does not run {artefact.description}: {remedy}")
    if batch_size is not None and artefact.max_batch is not None and batch_size > artefact.max_batch:
        raise BadInput(f"--batch-size {batch_size}: {artefact.path} was exported for at most {artefact.max_batch}")
    version, reason = available(name)
    if version is None:
        raise Unavailable(reason)
    engine: Engine = module.open_engine(artefact, batch_size=batch_size, device=device, threads=threads)
    names, classes = artefact.class_names, engine.info.num_classes
    if names is not None and len(names) != classes:
        raise BadInput(f"{artefact.described_by}: class_names has {len(names)} names, the model has {classes} classes")
    return engine


def suitable_batch_size(input_shape: tuple[int, int, int], artefact: Artefact, *, cuda: bool) -> int:
    """A power of two that makes batches of about 400 KB (48 MB on a GPU), within 32 .. 512 (1024) rows.

    On CPUs batches whose activations stay in the caches are fastest (measured: docs/decisions.md).
    """
    budget = (48 << 20) if cuda else (400 << 10)
    rows = max(1, budget // (4 * math.prod(input_shape)))
    size = min(1024 if cuda else 512, max(32, 1 << (rows.bit_length() - 1)))
    return min(size, artefact.max_batch or size)
