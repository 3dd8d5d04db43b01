"""What a benchmark must say of the machine it ran on."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

from ..versions import versions


def environment() -> dict[str, Any]:
    """Processor, GPU, cores, versions."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "gpu": gpu_name(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "versions": versions(
            "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"
        ),
    }  # fmt: skip


def processor_name() -> str:
    """The processor's product name, as far as the system tells."""
    return _cpuinfo("model name") or platform.processor() or "unknown"


def instructions() -> list[str]:
    """Of those that decide how fast, and how exactly, int8 and bf16 are: what the processor has."""
    flags = set(_cpuinfo("flags").split())
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return [name for name in wanted if name in flags]


def gpu_name() -> str | None:
    """The GPU that PyTorch would use; None if there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def reset_peak_memory() -> None:
    """Let the system count this process's peak anew, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float | None:
    """Of this process since the last reset; None where the system does not tell."""
    try:  # not getrusage: a child starts with its parent's peak there
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peak[0]) / 1024 if peak else None


def gpu_memory_mb() -> float | None:
    """In use on the GPU, by anybody; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20
