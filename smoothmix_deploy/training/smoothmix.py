"""SmoothMix: mix each image with its adversarial direction, and ask for a uniform answer at the far end.

Jeong et al., "SmoothMix: Training Confidence-calibrated Smoothed Classifiers for Certified Robustness", NeurIPS 2021
(arXiv 2111.09277), section 3 and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .attack import adversarial_path, project, under_attack
from .recipes import HyperParameters
from .steps import Draws, StepLoss, mean_softmax, noisy_copies


def smoothmix_step(
    model: nn.Module,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    draws: Draws,
    hp: HyperParameters,
    warmup: float,
) -> StepLoss:
    """L_nat + eta * warmup * L_mix, the same m draws in the attack and in both losses."""
    noise, m = draws.noise_MBCHW, len(draws.noise_MBCHW)
    clean, far = _attack(model, x_BCHW, y_B, noise, hp, warmup)

    logits = model(noisy_copies(clean, noise))
    natural = F.cross_entropy(logits, y_B.repeat(m))
    p_BK = mean_softmax(logits, m)

    lam = draws.lam_B
    x_mix = torch.lerp(clean, far, lam.view(-1, 1, 1, 1))
    # The gradient flows through p, as in the authors' code.
    y_mix = (1 - lam[:, None]) * p_BK + lam[:, None] / p_BK.shape[1]
    log_mix = model(noisy_copies(x_mix, noise)).log_softmax(dim=1)
    divergence = F.kl_div(log_mix, y_mix.repeat(m, 1), reduction="none").sum(dim=1)
    correct = p_BK.argmax(dim=1) == y_B
    mix = (correct.repeat(m) * divergence).mean()

    total = natural + hp.eta * warmup * mix
    return StepLoss(total, correct.sum(), {"natural": natural.detach(), "mix": mix.detach()})


def _attack(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    hp: HyperParameters,
    warmup: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(clean side, far side) of the mix."""
    with under_attack(model):
        first, far = adversarial_path(
            model, x, y, noise, steps=hp.attack_steps, step_size=hp.attack_step_size, max_norm=hp.max_norm
        )
    if not hp.one_step_adversary:
        return x, far
    return project(first, x, warmup * hp.attack_step_size), far
