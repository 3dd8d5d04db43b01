"""PyTorch, eager (`torch`) or compiled (`torch-compile`): runs a run folder, on the CPU or on a GPU.

For comparison, as the reference of the parity gate, and where nothing else is installed. Knows nothing about votes,
noise or certificates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from ..artefacts import Artefact
from ..devices import resolve_device
from ..errors import BadInput, Unavailable
from ..messages import first_line
from ..models.run_folder import load_model, read_config
from . import suitable_batch_size
from .base import EngineInfo, logits_from_host

RUNS = ("run",)


def version(name: str = "torch") -> str:
    """Of the installed torch."""
    return str(torch.__version__)


class TorchEngine:
    """A base classifier in eval mode, float32 with TF32 off, channels last."""

    info: EngineInfo

    def __init__(
        self, name: str, artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None
    ) -> None:
        self.device = resolve_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        cuda = self.device.type == "cuda"
        if cuda:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        config = read_config(artefact.path)
        model = load_model(artefact.path, config).to(self.device).eval().requires_grad_(False)
        self._model: Callable[[torch.Tensor], torch.Tensor] = model.to(memory_format=torch.channels_last)
        batch = batch_size or suitable_batch_size(config.input_shape, artefact, cuda=cuda)
        if name == "torch-compile":
            self._compile((batch, *config.input_shape), cuda)
        self.info = EngineInfo(
            name=name,
            version=version(),
            device=f"cuda ({torch.cuda.get_device_name(self.device)})" if cuda else "cpu",
            precision="fp32",
            batch_size=batch,
            threads=threads,
            input_shape=config.input_shape,
            num_classes=config.num_classes,
            artefact_sha256=artefact.sha256,
            options={"tf32": False, "cuda_graph": cuda and name == "torch-compile"},
        )

    def _compile(self, shape: tuple[int, ...], cuda: bool) -> None:
        """Compile for one shape; on a GPU as one CUDA graph. Unavailable where there is no compiler for it.

        There the first run compiles, the second records the graph and the third replays it: all that can fail, here.
        """
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA is known
        self._model = torch.compile(self._model, dynamic=False, mode="reduce-overhead" if cuda else "default")
        try:
            for _ in range(3 if cuda else 1):
                self.device_logits(torch.zeros(shape, device=self.device))
        except Exception as error:  # Inductor's errors are many; all mean that this machine cannot compile it
            raise Unavailable(f"engine torch-compile: {first_line(error)}; use --engine torch") from None

    def device_logits(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """See `DeviceEngine`."""
        with torch.inference_mode():
            return self._model(x_BCHW.contiguous(memory_format=torch.channels_last)).float()

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]."""
        if self.info.name == "torch-compile" and len(x_BCHW) != self.info.batch_size:
            raise BadInput(f"engine torch-compile takes batches of {self.info.batch_size} only, not {len(x_BCHW)}")
        return logits_from_host(self, x_BCHW)


def open_engine(
    name: str, artefact: Artefact, *, batch_size: int | None, device: str, threads: int | None, low_latency: bool
) -> TorchEngine:
    """See `engines.open_engine`."""
    return TorchEngine(name, artefact, batch_size=batch_size, device=device, threads=threads)
