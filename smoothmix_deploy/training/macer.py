"""MACER: maximise the certified radius of the smoothed classifier directly, without an attack.

Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius", ICLR 2020
(arXiv 2001.02378), algorithm 1.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .recipes import HyperParameters
from .steps import Draws, StepLoss, mean_softmax, noisy_copies


def macer_step(
    model: nn.Module,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    draws: Draws,
    hp: HyperParameters,
    warmup: float,
) -> StepLoss:
    """NLL of the mean softmax + lbd * warmup * mean of sigma / 2 * (margin - (ppf(p_1) - ppf(p_2))).

    p_1 and p_2 are the two largest entries of the mean softmax of beta * F. The robust term counts samples with the
    right answer whose ppf(p_1) - ppf(p_2) is at most `margin`; the mean is over all B.
    """
    m = len(draws.noise_MBCHW)
    logits = model(noisy_copies(x_BCHW, draws.noise_MBCHW))
    p_BK = mean_softmax(logits, m)
    natural = F.nll_loss((p_BK + 1e-10).log(), y_B)
    robust = _robust(mean_softmax(hp.beta * logits, m), y_B, hp) if warmup > 0 else torch.zeros_like(natural)
    correct = p_BK.detach().argmax(dim=1) == y_B
    parts = {"natural": natural.detach(), "robust": robust.detach()}
    return StepLoss(natural + hp.lbd * warmup * robust, correct.sum(), parts)


def _robust(p_BK: torch.Tensor, y_B: torch.Tensor, hp: HyperParameters) -> torch.Tensor:
    top, classes = p_BK.topk(2)
    gap = (_ppf(top[:, 0]) - _ppf(top[:, 1])).detach()
    counted = (classes[:, 0] == y_B) & (gap <= hp.margin)
    top = top[counted]  # before ppf, whose gradient at 1 would be infinite
    return (hp.margin - (_ppf(top[:, 0]) - _ppf(top[:, 1]))).sum() * hp.sigma / 2 / len(y_B)


def _ppf(p: torch.Tensor) -> torch.Tensor:
    """The standard normal quantile, computed as in the authors' code: infinite where 2 p - 1 rounds to -1 or 1."""
    return torch.erfinv(2 * p - 1) * math.sqrt(2)
