"""smx bench"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, numbers, print_json, progress_bar

NAME = "bench"


def command(
    artefacts: Annotated[list[Path], typer.Argument(help="Run folders, export folders, .onnx files.")],
    engine: Annotated[str, typer.Option("--engine", help="all, or names separated by commas.")] = "all",
    batch_sizes: Annotated[str, typer.Option("--batch-sizes")] = "1,8,64,256,1000",
    n: Annotated[int, typer.Option("--n", help="Samples of a certificate, for certified images/s.")] = 100_000,
    n0: o.N0 = 100,
    seconds: Annotated[float, typer.Option("--seconds", help="Least time a configuration.")] = 3.0,
    device: o.Device = "auto",
    threads: o.Threads = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write everything as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a plot: .png, .svg or .pdf.")] = None,
    json: o.Json = False,
) -> None:
    """Latency and throughput of artefacts on engines, raw and end to end."""
    import smoothmix_deploy as smx

    with progress_bar() as progress:
        result = smx.bench(
            *artefacts, engine=engine, batch_sizes=numbers(batch_sizes, "--batch-sizes", int) or [], n=n, n0=n0,
            seconds=seconds, device=device, threads=threads, out=out, plot=plot, progress=progress,
        )  # fmt: skip
    for name, reason in result.skipped.items():
        note(f"skipped {name}: {reason}")
    for row in result.results:
        if not row.stable:
            note(
                f"warning: {row.artefact} on {row.engine}, batch {row.batch_size}: unstable timings, measure again on a quiet machine"
            )
    if json:
        print_json(result.record())
        return
    print_table(result)


def print_table(result) -> None:  # type: ignore[no-untyped-def]
    """One line a configuration."""
    width = max(8, *(len(row.artefact) for row in result.results))
    print(
        f"{'artefact':<{width}}  engine  precision  batch   p50 ms   p99 ms   images/s  end to end  of raw  certified/s"
    )
    for r in result.results:
        print(
            f"{r.artefact:<{width}}  {r.engine:<6}  {r.precision:<9}  {r.batch_size:>5}  {r.p50_ms:>7.2f}  {r.p99_ms:>7.2f}"
            f"  {r.throughput:>9,.0f}  {r.end_to_end:>10,.0f}  {r.raw_share:>6.0%}  {r.certified_per_second:>11.3f}"
        )
