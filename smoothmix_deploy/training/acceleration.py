"""How the network runs while it trains: memory layout, autocast, torch.compile. Knows nothing about methods.

Only the network is touched: losses, attacks and updates stay in float32. Measured gains are in `docs/decisions.md`.
"""

from __future__ import annotations

import torch
from torch import nn

from ..errors import Unavailable
from ..messages import first_line


class Accelerated(nn.Module):
    """The network as it runs in training: noisy images [N, C, H, W] -> logits [N, K], never in bfloat16.

    Always channels last, the layout of the fast convolutions. `precision` bf16 is autocast: float32 weights, bfloat16
    products. `compile` hands the network to torch.compile. Raises Unavailable where there is no compiler for that.
    """

    def __init__(self, model: nn.Module, *, precision: str = "fp32", compile: bool = False) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self._bf16 = precision == "bf16"
        self._run = torch.compile(self.model, dynamic=False) if compile else self.model

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x_NCHW.device.type, torch.bfloat16, enabled=self._bf16):
            try:
                logits: torch.Tensor = self._run(x_NCHW)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise Unavailable(f"--compile: torch.compile failed ({first_line(error)}); train without it") from None
        return logits.float() if self._bf16 else logits
