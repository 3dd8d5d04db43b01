"""`smx doctor`: what this machine has, and exactly why what is missing is missing."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from .benchmarking.environment import processor_name
from .engines import ENGINES, available
from .versions import installed_version, versions


@dataclass(frozen=True)
class EngineState:
    """`version` None: not available, `reason` says why and which extra brings it."""

    name: str
    runs: str
    version: str | None
    reason: str


@dataclass(frozen=True)
class DoctorReport:
    """What was found."""

    system: str
    processor: str
    cores: int | None
    versions: dict[str, str]
    gpus: list[str]
    gpu_reason: str
    engines: list[EngineState]
    extras: dict[str, str | None]
    """Optional packages and their versions."""

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


def doctor() -> DoctorReport:
    """Look around; never fails."""
    gpus, reason = _gpus()
    states = []
    for name, entry in ENGINES.items():
        version, why = available(name)
        states.append(EngineState(name, entry.about, version, why))
    return DoctorReport(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor_name(),
        cores=os.cpu_count(),
        versions=versions("torch", "torchvision", "onnx", "onnxscript"),
        gpus=gpus,
        gpu_reason=reason,
        engines=states,
        extras={name: installed_version(name) for name in ("onnxruntime", "onnxruntime-gpu", "tensorrt", "timm")},
    )


def _gpus() -> tuple[list[str], str]:
    import torch

    if torch.version.cuda is None:
        return [], f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return [], f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU or no driver"
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())], ""
