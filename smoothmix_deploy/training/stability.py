"""Stability training: the answer under noise should be the answer without.

Li, Chen, Wang, Carin, "Certified Adversarial Robustness with Additive Noise", NeurIPS 2019 (arXiv 1809.03113), eq. 9.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .recipes import HyperParameters
from .steps import Draws, StepLoss, mean_softmax, noisy_copies


def stability_step(
    model: nn.Module,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    draws: Draws,
    hp: HyperParameters,
    warmup: float,
) -> StepLoss:
    """CE(F(x), y) + lbd * mean_i CE(softmax F(x), F(x + d_i)); the gradient flows through softmax F(x) too.

    Clean and noisy images go through the network apart, so that BatchNorm sees each kind by itself.
    """
    m = len(draws.noise_MBCHW)
    clean = model(x_BCHW)
    noisy = model(noisy_copies(x_BCHW, draws.noise_MBCHW))
    natural = F.cross_entropy(clean, y_B)
    stability = F.cross_entropy(noisy, clean.softmax(dim=1).repeat(m, 1))
    correct = mean_softmax(noisy.detach(), m).argmax(dim=1) == y_B
    parts = {"natural": natural.detach(), "stability": stability.detach()}
    return StepLoss(natural + hp.lbd * stability, correct.sum(), parts)
