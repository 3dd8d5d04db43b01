"""The picture of a run, `training.png`: losses, accuracies and the learning rate over the epochs.

Drawn from the lines of metrics.jsonl alone. Knows nothing about methods: what is no accuracy, rate or time is a loss.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..files import atomic_path

NOT_LOSSES = {"epoch", "lr", "train_accuracy", "noisy_accuracy", "seconds", "images_per_second", "processes"}
_ACCURACIES = (
    ("train_accuracy", "training images, under noise", "C0"),
    ("noisy_accuracy", "test images, under noise", "C1"),
)


def write_training_plot(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write `path` (.png). `lines` as in metrics.jsonl, at least one."""
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7.2, 6.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    names = [k for k, v in lines[-1].items() if k not in NOT_LOSSES and isinstance(v, int | float)]
    for name in names:
        style = {"color": "0.2", "linewidth": 2.0} if name == "loss" else {"linewidth": 1.4}
        _curve(loss, lines, name, "total" if name == "loss" else name.replace("_", " "), **style)
    loss.set_ylabel("loss")
    loss.set_ylim(bottom=0 if _lowest(lines, names) >= 0 else None)
    for name, label, colour in _ACCURACIES:
        _curve(accuracy, lines, name, label, color=colour, linewidth=1.4)
    _probe(accuracy, lines)
    accuracy.set_ylabel("accuracy")
    accuracy.set_ylim(0, 1.02)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    _curve(rate, lines, "lr", None, color="0.35", linewidth=1.4)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    rate.set_xlim(*((0.5, len(lines) + 0.5) if len(lines) < 3 else (1, len(lines))))
    for axes, corner in ((loss, "upper right"), (accuracy, "lower right"), (rate, "best")):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9, loc=corner)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _curve(axes: Any, lines: list[dict[str, Any]], name: str, label: str | None, **style: Any) -> None:
    """One metric over the epochs that have it."""
    points = [(line["epoch"] + 1, line[name]) for line in lines if line.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 3 else None, **style)


def _probe(axes: Any, lines: list[dict[str, Any]]) -> None:
    """The certified accuracy, with a marker where it was measured."""
    points = [(line["epoch"] + 1, line["probe"]["certified"]) for line in lines if line.get("probe")]
    if points:
        probe = next(line["probe"] for line in reversed(lines) if line.get("probe"))
        label = f"certified at radius {probe['radius']:g} ({probe['images']} test images)"
        axes.plot(
            *zip(*points, strict=True),
            label=label,
            color="C2",
            linewidth=2.0,
            marker="o",
            markersize=3.5,
            clip_on=False,
        )


def _lowest(lines: list[dict[str, Any]], names: list[str]) -> float:
    return min((line[name] for line in lines for name in names if line.get(name) is not None), default=-math.inf)
