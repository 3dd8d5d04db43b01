"""What a set of certificates amounts to: certified accuracy, ACR, abstentions. Pure; knows no file format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .statistics.bounds import ABSTAIN


class Row(Protocol):
    """The fields of a certificate that a summary needs."""

    @property
    def prediction(self) -> int: ...
    @property
    def radius(self) -> float: ...
    @property
    def correct(self) -> bool: ...


@dataclass(frozen=True)
class Summary:
    """Over all images. `acr`: mean of radius where correct, else 0. `accuracy`, `abstained`: shares of images."""

    images: int
    acr: float
    accuracy: float
    abstained: float
    mean_samples: float | None
    """Estimation samples an image; None where the file does not say."""


def summarise(rows: Sequence[Row]) -> Summary:
    """Average certified radius (Zhai et al. 2020), accuracy of the smoothed classifier, abstention rate."""
    if not rows:
        return Summary(0, float("nan"), float("nan"), float("nan"), None)
    samples = [n for row in rows if (n := getattr(row, "n", None)) is not None]
    return Summary(
        images=len(rows),
        acr=float(np.mean([row.radius if row.correct else 0.0 for row in rows])),
        accuracy=float(np.mean([bool(row.correct) for row in rows])),
        abstained=float(np.mean([row.prediction == ABSTAIN for row in rows])),
        mean_samples=float(np.mean(samples)) if len(samples) == len(rows) else None,
    )


def certified_accuracy(rows: Iterable[Row], radii: Sequence[float]) -> list[float]:
    """Share of images that are correct with a certified radius >= r, for each r of `radii`."""
    proved = np.array([row.radius if row.correct else -1.0 for row in rows])
    return [float(np.mean(proved >= r)) if len(proved) else float("nan") for r in radii]


def usual_radii(highest: float) -> list[float]:
    """0, 0.25, 0.5, ... up to the highest radius proved; larger steps if that would be more than a dozen."""
    step = 0.25
    while highest / step > 12:
        step *= 2
    return [i * step for i in range(int(highest / step) + 1)]
