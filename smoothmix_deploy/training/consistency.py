"""Consistency regularisation: the same answer under every noise, and a confident one.

Jeong and Shin, "Consistency Regularization for Certified Robustness of Smoothed Classifiers", NeurIPS 2020
(arXiv 2006.04062), eq. 10.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .recipes import HyperParameters
from .steps import Draws, StepLoss, mean_softmax, noisy_copies


def consistency_step(
    model: nn.Module,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    draws: Draws,
    hp: HyperParameters,
    warmup: float,
) -> StepLoss:
    """mean_i CE(F(x + d_i), y) + lbd * mean_i KL(p || softmax F(x + d_i)) + eta * entropy(p), p the mean softmax."""
    m = len(draws.noise_MBCHW)
    logits = model(noisy_copies(x_BCHW, draws.noise_MBCHW))
    natural = F.cross_entropy(logits, y_B.repeat(m))
    p_BK = mean_softmax(logits, m)
    divergence = F.kl_div(logits.log_softmax(dim=1), p_BK.repeat(m, 1), reduction="none").sum(dim=1).mean()
    entropy = -(p_BK * p_BK.clamp(min=1e-20).log()).sum(dim=1).mean()
    consistency = hp.lbd * divergence + hp.eta * entropy
    correct = p_BK.detach().argmax(dim=1) == y_B
    parts = {"natural": natural.detach(), "consistency": consistency.detach()}
    return StepLoss(natural + consistency, correct.sum(), parts)
