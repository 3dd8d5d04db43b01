"""PyTorch in eager mode: runs a run folder, for comparison and where nothing else is installed.

On a GPU the batch is copied there from host memory. Knows nothing about votes, noise or certificates.
"""

from __future__ import annotations

import numpy as np
import torch

from ..artefacts import Artefact
from ..devices import resolve_device
from ..models.run_folder import load_model, read_config
from . import suitable_batch_size
from .base import EngineInfo

RUNS = ("run",)


def version() -> str:
    """Of the installed torch."""
    return str(torch.__version__)


class TorchEngine:
    """A base classifier in eval mode, float32 with TF32 off."""

    info: EngineInfo

    def __init__(self, artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None) -> None:
        self._device = resolve_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        config = read_config(artefact.path)
        model = load_model(artefact.path, config).to(self._device).eval().requires_grad_(False)
        self._model = model.to(memory_format=torch.channels_last)
        cuda = self._device.type == "cuda"
        self.info = EngineInfo(
            name="torch",
            version=version(),
            device=f"cuda ({torch.cuda.get_device_name(self._device)})" if cuda else "cpu",
            precision="fp32",
            batch_size=batch_size or suitable_batch_size(config.input_shape, artefact, cuda=cuda),
            threads=threads,
            input_shape=config.input_shape,
            num_classes=config.num_classes,
            artefact_sha256=artefact.sha256,
        )

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]."""
        x = torch.from_numpy(x_BCHW).to(self._device, memory_format=torch.channels_last)
        with torch.inference_mode():
            result: np.ndarray = self._model(x).float().cpu().numpy()
        return result


def open_engine(artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None) -> TorchEngine:
    """See `engines.open_engine`."""
    return TorchEngine(artefact, batch_size=batch_size, device=device, threads=threads)
