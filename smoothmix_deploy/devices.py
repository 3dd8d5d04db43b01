"""Where PyTorch runs: `--device auto|cpu|cuda`."""

from __future__ import annotations

import torch

from .errors import BadInput, Unavailable


def resolve_device(name: str) -> torch.device:
    """The device called `name`; auto takes a GPU where there is one. Unavailable if there is none but one was asked for."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device {name}: must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise Unavailable("--device cuda: PyTorch sees no CUDA device here; use --device cpu (smx doctor says more)")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def require_cuda(what: str) -> None:
    """Unavailable, naming `what`, unless PyTorch sees an NVIDIA GPU: other libraries crash where there is none."""
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise Unavailable(f"{what}: needs an NVIDIA GPU, and torch {torch.__version__} ({built}) sees none")
