"""Gaussian augmentation: the baseline of Cohen, Rosenfeld, Kolter 2019 (arXiv 1902.02918), section 3.3."""

import torch
from torch import nn
from torch.nn import functional as F

from .recipes import HyperParameters
from .steps import Draws, StepLoss, mean_softmax, noisy_copies


def gaussian_step(
    model: nn.Module,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    draws: Draws,
    hp: HyperParameters,
    warmup: float,
) -> StepLoss:
    """mean_i CE(F(x + d_i), y)."""
    m = len(draws.noise_MBCHW)
    logits = model(noisy_copies(x_BCHW, draws.noise_MBCHW))
    loss = F.cross_entropy(logits, y_B.repeat(m))
    correct = mean_softmax(logits.detach(), m).argmax(dim=1) == y_B
    return StepLoss(loss, correct.sum())
