"""The certified-accuracy curve: share of images proved correct within each radius."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput
from ..files import atomic_path, check_writable
from ..messages import printable
from ..summary import certified_accuracy
from .table import Report

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot_name(path: Path) -> None:
    """BadInput for suffixes other than png, svg, pdf, and for what cannot be a file."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"--plot {path}: the name must end in {', '.join(SUFFIXES)}")
    check_writable(path, "--plot")


def write_plot(report: Report, path: Path) -> None:
    """Write the curve of every file to `path`; BadInput for suffixes other than png, svg, pdf."""
    check_plot_name(path)
    figure = _figure(report)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160)


def png_bytes(report: Report) -> bytes:
    """The same as PNG, for pages."""
    buffer = io.BytesIO()
    _figure(report).savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _figure(report: Report) -> Any:
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.0, 4.3), layout="constrained")
    axes = figure.subplots()
    highest = max((row.radius for f in report.files for row in f.rows if row.correct), default=1.0) or 1.0
    radii = np.linspace(0, highest * 1.02, 600)
    names = _short_names([f.file for f in report.files])
    for f, name in zip(report.files, names, strict=True):
        label = f"{printable(name).lstrip('_')}  (ACR {f.summary.acr:.3f})"  # names with _ in front have no legend
        share = certified_accuracy(f.rows, radii.tolist())
        (line,) = axes.step(radii, share, where="post", label=label, linewidth=1.8)
        if len(report.files) == 1:
            axes.fill_between(radii, share, step="post", alpha=0.12, color=line.get_color())
    axes.set_xlim(0, radii[-1])
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("certified L2 radius (pixels in [0, 1])")
    axes.set_ylabel("certified accuracy")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(loc="upper right", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a file's name is no formula
    return figure


def _short_names(files: list[str]) -> list[str]:
    """File names without what all paths share, so that a legend stays short."""
    parts = [Path(f).with_suffix("").parts if f.endswith(".jsonl") else Path(f).parts for f in files]
    if len(parts) == 1:
        return [parts[0][-1]]
    start = 0
    while all(len(p) > start + 1 for p in parts) and len({p[start] for p in parts}) == 1:
        start += 1
    return ["/".join(p[start:]) for p in parts]
