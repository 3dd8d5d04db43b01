"""The plot of `smx bench`: rates and latencies over the batch size, one colour a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..files import atomic_path

if TYPE_CHECKING:
    from .run import BenchResult


def write_plot(result: BenchResult, path: Path) -> None:
    """Write `path` (.png, .svg, .pdf). Hollow markers: the measurement was unstable."""
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys((r.artefact, r.engine, r.precision) for r in result.results))
    figure = Figure(figsize=(9.6, 4.0 + 0.16 * max(0, len(keys) - 4)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, key in enumerate(keys):
        rows = [r for r in result.results if (r.artefact, r.engine, r.precision) == key]
        sizes, colour = [r.batch_size for r in rows], f"C{number % 10}"
        style = "-" if number < 10 else "--"
        left.plot(sizes, [r.throughput for r in rows], style, color=colour, label=f"{key[0]}: {key[1]} {key[2]}")
        left.plot(sizes, [r.end_to_end for r in rows], ":", color=colour)
        right.plot(sizes, [r.p50_ms for r in rows], style, color=colour)
        right.fill_between(sizes, [r.p50_ms for r in rows], [r.p99_ms for r in rows], alpha=0.12, color=colour)
        for r in rows:
            face = colour if r.stable else "white"
            left.plot(r.batch_size, r.throughput, "o", color=colour, markerfacecolor=face, markersize=5)
            right.plot(r.batch_size, r.p50_ms, "o", color=colour, markerfacecolor=face, markersize=5)
    left.set_title("raw engine (solid), certification end to end (dotted)", fontsize=9)
    right.set_title("median, shaded up to the 99th percentile", fontsize=9)
    left.set_ylabel("images/s")
    right.set_ylabel("latency of a batch, ms")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("batch size")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    unstable = sum(not r.stable for r in result.results)
    if unstable:
        figure.suptitle(f"{unstable} of {len(result.results)} measurements unstable (hollow)", fontsize=9, color="C3")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160)
