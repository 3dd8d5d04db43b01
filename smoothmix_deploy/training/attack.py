"""The adversarial direction of a smoothed classifier: unnormalised-ball gradient ascent on the soft smoothed loss.

SmoothMix (arXiv 2111.09277) section 3.1, after SmoothAdv (Salman et al. 2019, arXiv 1906.04584). The m noise draws go
through the network as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .steps import mean_softmax, noisy_copies


def adversarial_path(
    model: nn.Module,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    noise_MBCHW: torch.Tensor,
    *,
    steps: int,
    step_size: float,
    max_norm: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_1, x_T): the points after the first and the last of T steps up `-log (1/m) sum_i softmax F(x + d_i)[y]`.

    Each step moves every sample by `step_size` (L2) along its gradient and clips to [0, 1]; `max_norm` also projects
    onto the L2 ball round x. Call it with the model in eval mode and parameter gradients off. Both results are
    detached, [B, C, H, W]; with T = 0 both are x.
    """
    current = first = x_BCHW.detach()
    for t in range(steps):
        gradient = smoothed_gradient(model, current, y_B, noise_MBCHW)
        norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        moved = current + step_size * gradient / (norm + 1e-8)
        current = project(moved, x_BCHW, max_norm)
        if t == 0:
            first = current
    return first, current


def project(moved_BCHW: torch.Tensor, x_BCHW: torch.Tensor, max_norm: float | None) -> torch.Tensor:
    """Pull back to within `max_norm` (L2, per sample) of x, then clip to [0, 1]."""
    if max_norm is not None:
        moved_BCHW = x_BCHW + (moved_BCHW - x_BCHW).renorm(p=2, dim=0, maxnorm=max_norm)
    return moved_BCHW.clamp(0, 1).detach()


def smoothed_gradient(
    model: nn.Module, x_BCHW: torch.Tensor, y_B: torch.Tensor, noise_MBCHW: torch.Tensor
) -> torch.Tensor:
    """Of `-log (1/m) sum_i softmax F(x + d_i)[y]` in x, per sample: [B, C, H, W]."""
    x_BCHW = x_BCHW.detach().requires_grad_(True)
    p_BK = mean_softmax(model(noisy_copies(x_BCHW, noise_MBCHW)), len(noise_MBCHW))
    loss = -p_BK.gather(1, y_B[:, None]).clamp(min=1e-20).log().sum()
    (gradient,) = torch.autograd.grad(loss, x_BCHW)
    return gradient


@contextmanager
def under_attack(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; after it the model is as it was."""
    training = model.training
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
