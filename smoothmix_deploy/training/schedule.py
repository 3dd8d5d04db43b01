"""The learning rate as a function of where a run stands."""

from __future__ import annotations

import math

from .recipes import HyperParameters


def learning_rate(hp: HyperParameters, epoch: int, fraction: float) -> float:
    """At `fraction` in [0, 1) of `epoch`. step: whole epochs; cosine and one-cycle (30 % linear rise): every step."""
    if hp.schedule == "step":
        return hp.lr * hp.lr_gamma ** (epoch // hp.lr_step)
    done = (epoch + fraction) / hp.epochs
    if hp.schedule == "cosine":
        return hp.lr * 0.5 * (1 + math.cos(math.pi * done))
    rise = 0.3
    if done < rise:
        return hp.lr * (0.1 + 0.9 * done / rise)
    return hp.lr * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise))))
