"""SmoothAdv: adversarial training of the smoothed classifier.

Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", NeurIPS 2019
(arXiv 1906.04584), algorithm 1 with the attack SmoothAdv_PGD.
"""

import torch
from torch import nn

from .attack import smoothed_gradient, under_attack
from .gaussian import gaussian_step
from .recipes import HyperParameters
from .steps import Draws, StepLoss


def smoothadv_step(
    model: nn.Module,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    draws: Draws,
    hp: HyperParameters,
    warmup: float,
) -> StepLoss:
    """mean_i CE(F(x_T + d_i), y) at the adversary x_T within warmup * max_norm of x, found under the same draws."""
    assert hp.max_norm is not None
    with under_attack(model):
        x_BCHW = _adversary(model, x_BCHW, y_B, draws.noise_MBCHW, hp, warmup * hp.max_norm)
    return gaussian_step(model, x_BCHW, y_B, draws, hp, warmup)


def _adversary(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    hp: HyperParameters,
    epsilon: float,
) -> torch.Tensor:
    """T steps of length 2 epsilon / T, each clipped to [0, 1] and then pulled back into the L2 ball (not as `project`).

    A sample whose gradient vanishes (a saturated softmax) takes a standard normal step instead. That is the noise of
    another sample of the batch, which its own attack does not see: independent of it, and nothing more to draw.
    """
    step_size = 2 * epsilon / hp.attack_steps
    current = x
    for t in range(hp.attack_steps):
        gradient = smoothed_gradient(model, current, y, noise)
        norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        turn, draw = divmod(t, len(noise))
        elsewhere = noise[draw].roll(1 + turn, dims=0) / hp.sigma
        direction = torch.where(norm == 0, elsewhere, gradient / norm)
        moved = (current + step_size * direction).clamp(0, 1)
        current = x + (moved - x).renorm(p=2, dim=0, maxnorm=epsilon)
    return current
