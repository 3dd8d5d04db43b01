"""What every training method is: a pure function from a noisy mini-batch to a loss. The methods are in `methods`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from .recipes import HyperParameters


@dataclass(frozen=True)
class Draws:
    """All the randomness of one step, drawn in advance so that the step itself is a function."""

    noise_MBCHW: torch.Tensor
    """m Gaussian draws ~ N(0, sigma^2 I), one for each image: [m, B, C, H, W]."""
    lam_B: torch.Tensor
    """Uniform on [0, 1/2], [B]: the mixing coefficients of SmoothMix."""


@dataclass(frozen=True)
class StepLoss:
    """`total` to differentiate; `parts` (detached scalars) and `correct` (of B, by the averaged softmax) for logs."""

    total: torch.Tensor
    correct: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


Step = Callable[[nn.Module, torch.Tensor, torch.Tensor, Draws, HyperParameters, float], StepLoss]
"""(model, x [B, C, H, W] in [0, 1], y [B], draws, hyper-parameters, warm-up in [0, 1]) -> loss."""


def noisy_copies(x_BCHW: torch.Tensor, noise_MBCHW: torch.Tensor) -> torch.Tensor:
    """x + d_i for all m draws as one batch [m * B, C, H, W], draw-major."""
    return (x_BCHW.unsqueeze(0) + noise_MBCHW).flatten(0, 1)


def mean_softmax(logits_NK: torch.Tensor, m: int) -> torch.Tensor:
    """(1/m) sum_i softmax of a draw-major batch of logits: [m * B, K] -> [B, K]."""
    return logits_NK.softmax(dim=1).unflatten(0, (m, -1)).mean(dim=0)
