"""The strongest perturbation of an image, of at most a given length, that gradients find against a smoothed classifier.

Projected gradient descent on the L2 ball with the expectation over the noise taken by sampling (EoT-PGD; Salman et al.
2019, arXiv 1906.04584, section 2.2): white box, from many starts. Half of the starts push the class down, the others
push it below one rival each. Finding nothing proves nothing. Knows nothing about certificates and engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..training.steps import noisy_copies

_VALUES_AT_ONCE = 1 << 22
"""Noisy pixels in one pass with gradients: more restarts than fit are made one after another."""
_RANKING_ROUNDS = 8
UNTARGETED = -1


@dataclass(frozen=True)
class Effort:
    """How hard to try: `restarts` starts, `steps` steps each, `samples` noise draws a step."""

    restarts: int
    steps: int
    samples: int


def strongest_perturbation(
    model: nn.Module,
    image_CHW: torch.Tensor,
    label: int,
    radius: float,
    *,
    sigma: float,
    effort: Effort,
    generator: torch.Generator,
    starts: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """delta [C, H, W] with norm <= radius (up to rounding) where `label` does worst against its best rival.

    `model` in eval mode, parameter gradients off, on the image's device, as is the generator. `starts`: earlier
    perturbations, whose directions take up to half of the restarts.
    """
    begin_RCHW = _starting_points(image_CHW, radius, effort.restarts, starts, generator)
    target_R = _targets(model, image_CHW, label, sigma, effort, generator)
    chunk = max(1, _VALUES_AT_ONCE // (effort.samples * image_CHW.numel()))
    found: list[torch.Tensor] = []
    margins: list[torch.Tensor] = []
    for rows in torch.arange(effort.restarts).split(chunk):
        rows = rows.to(image_CHW.device)
        delta_RCHW = _descend(
            model, image_CHW, label, target_R[rows], begin_RCHW[rows], radius, sigma, effort, generator
        )
        found.append(delta_RCHW)
        margins.append(_vote_margin(model, image_CHW + delta_RCHW, label, sigma, effort.samples, generator))
    return torch.cat(found)[torch.cat(margins).argmin()]


def _starting_points(
    image_CHW: torch.Tensor, radius: float, restarts: int, starts: Sequence[torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    """Directions at random, anywhere between the image and the sphere; the latest `starts`, stretched to the sphere."""
    shape = (restarts, *image_CHW.shape)
    direction = torch.randn(shape, generator=generator, device=image_CHW.device)
    share = torch.rand(restarts, generator=generator, device=image_CHW.device)
    begin = radius * share.view(-1, 1, 1, 1) * _unit(direction)
    for r, start in enumerate(list(starts)[::-1][: (restarts + 1) // 2]):
        begin[r] = radius * _unit(start[None])[0]
    return begin


def _targets(
    model: nn.Module, image_CHW: torch.Tensor, label: int, sigma: float, effort: Effort, generator: torch.Generator
) -> torch.Tensor:
    """A rival for every second restart, the most probable at the image first; UNTARGETED for the others."""
    with torch.no_grad():
        noise = _noise(1, image_CHW, sigma, effort.samples, generator)
        log_p_K = _log_mean_softmax(model(noisy_copies(image_CHW[None], noise)), effort.samples)[0]
    rivals = [k for k in log_p_K.argsort(descending=True).tolist() if k != label]
    targets = [rivals[r // 2 % len(rivals)] if r % 2 else UNTARGETED for r in range(effort.restarts)]
    return torch.tensor(targets, device=image_CHW.device)


def _descend(
    model: nn.Module, image_CHW: torch.Tensor, label: int, target_R: torch.Tensor, begin_RCHW: torch.Tensor,
    radius: float, sigma: float, effort: Effort, generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Per restart, the iterate with the smallest estimated margin; steps shrink from half the radius to 1 % of it."""
    delta = best = begin_RCHW
    smallest_R = torch.full((len(delta),), math.inf, device=delta.device)
    targeted_R = target_R != UNTARGETED
    for t in range(effort.steps + 1):
        delta = delta.detach().requires_grad_(True)
        noise = _noise(len(delta), image_CHW, sigma, effort.samples, generator)
        log_p_RK = _log_mean_softmax(model(noisy_copies(image_CHW + delta, noise)), effort.samples)
        others_RK = log_p_RK.detach().clone()
        others_RK[:, label] = -math.inf
        margin_R = log_p_RK.detach()[:, label] - others_RK.amax(dim=1)
        better_R = margin_R < smallest_R
        smallest_R = torch.where(better_R, margin_R, smallest_R)
        best = torch.where(better_R.view(-1, 1, 1, 1), delta.detach(), best)
        if t == effort.steps:
            break
        rival_R = log_p_RK.gather(1, target_R.clamp(min=0)[:, None])[:, 0]
        objective_R = log_p_RK[:, label] - torch.where(targeted_R, rival_R, torch.zeros_like(rival_R))
        (gradient,) = torch.autograd.grad(objective_R.sum(), delta)
        step = radius * (0.01 + 0.49 * (1 - t / effort.steps))
        moved = delta.detach() - step * _unit(gradient)
        delta = moved.renorm(p=2, dim=0, maxnorm=radius)
    return best


def _vote_margin(
    model: nn.Module, points_RCHW: torch.Tensor, label: int, sigma: float, samples: int, generator: torch.Generator
) -> torch.Tensor:
    """(votes for the class - votes for its best rival) / samples, from draws that the descent did not choose by."""
    votes_RK = torch.zeros(())
    with torch.no_grad():
        for _ in range(_RANKING_ROUNDS):
            noise = _noise(1, points_RCHW[0], sigma, samples, generator)  # the same for all: a paired comparison
            logits = model(noisy_copies(points_RCHW, noise))
            vote = nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1])
            # Probabilities break ties among points where no vote was lost yet.
            score = vote + 0.01 * logits.softmax(dim=1)
            votes_RK = votes_RK.to(score) + score.unflatten(0, (samples, -1)).mean(dim=0)
    claimed_R = votes_RK[:, label].clone()
    votes_RK[:, label] = -math.inf
    return (claimed_R - votes_RK.amax(dim=1)) / _RANKING_ROUNDS


def _noise(rows: int, image_CHW: torch.Tensor, sigma: float, samples: int, generator: torch.Generator) -> torch.Tensor:
    return sigma * torch.randn((samples, rows, *image_CHW.shape), generator=generator, device=image_CHW.device)


def _log_mean_softmax(logits_NK: torch.Tensor, m: int) -> torch.Tensor:
    """log of (1/m) sum_i softmax: [m * R, K] -> [R, K]. In logarithms, so that 1 - p does not vanish for p near 1."""
    return logits_NK.log_softmax(dim=1).unflatten(0, (m, -1)).logsumexp(dim=0) - math.log(m)


def _unit(x_RCHW: torch.Tensor) -> torch.Tensor:
    return x_RCHW / x_RCHW.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1, 1)
