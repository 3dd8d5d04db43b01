"""smx bench"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, numbers, print_json, progress_bar, show

NAME = "bench"


def command(
    artefacts: Annotated[list[Path], typer.Argument(help="Run folders, export folders, .onnx files.")],
    engine: Annotated[str, typer.Option("--engine", help="all, or names separated by commas.")] = "all",
    batch_sizes: Annotated[str, typer.Option("--batch-sizes")] = "1,8,64,256,1000",
    n: Annotated[int, typer.Option("--n", help="Samples of a certificate, for certified images/s.")] = 100_000,
    n0: o.N0 = 100,
    seconds: Annotated[float, typer.Option("--seconds", help="Least time a configuration.")] = 3.0,
    cost_per_hour: Annotated[
        float | None,
        typer.Option("--cost-per-hour", help="Of this machine, in your own unit: gives the cost of a certificate."),
    ] = None,
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
            seconds=seconds, cost_per_hour=cost_per_hour, device=device, threads=threads, out=out, plot=plot, progress=progress,
        )  # fmt: skip
    for name, reason in result.skipped.items():
        note(f"skipped {name}: {reason}")
    for row in result.results:
        if not row.stable:
            note(
                f"warning: {row.artefact} on {row.engine}, batch {row.batch_size}: unstable timings after {row.tries} tries, measure again on a quiet machine"
            )
    if json:
        print_json(result.record())
        return
    print_table(result)


def print_table(result) -> None:  # type: ignore[no-untyped-def]
    """One line a configuration, then the scenarios."""
    width = max(8, *(len(row.artefact) for row in result.results))
    engine = max(6, *(len(row.engine) for row in result.results))
    head = f"{'artefact':<{width}}  {'engine':<{engine}}  precision"
    show(f"{head}  batch   p50 ms   p99 ms (95 % interval)     images/s  end to end  of raw  certified/s")
    for r in result.results:
        p99 = f"{r.p99_ms:>8.2f}"
        interval = (
            "(too few runs)" if r.p99_interval is None else f"({r.p99_interval[0]:.2f} .. {r.p99_interval[1]:.2f})"
        )
        show(
            f"{r.artefact:<{width}}  {r.engine:<{engine}}  {r.precision:<9}  {r.batch_size:>5}  {r.p50_ms:>7.2f} {p99} {interval:<18}"
            f" {r.throughput:>9,.0f}  {r.end_to_end:>10,.0f}  {r.raw_share:>6.0%}  {r.certified_per_second:>11.3f}"
            f"{'' if r.stable else ' !'}"
        )
    if not all(r.stable for r in result.results):
        show("!  unstable timings: other work on this machine; shares of raw mean little there")
    print()
    cost = "  cost of a certificate" if result.cost_per_hour is not None else ""
    show(f"{head}  single stream p50, p99 ms   offline images/s (batch)  certified/s{cost}")
    for s in result.scenarios:
        single = (
            "not measured"
            if s.single_stream_p50_ms is None
            else f"{s.single_stream_p50_ms:.3f}, {s.single_stream_p99_ms:.3f}"
        )
        price = "" if s.offline_cost_per_certificate is None else f"  {s.offline_cost_per_certificate:.3g}"
        offline = f"{s.offline_throughput:,.0f} ({s.offline_batch_size})"
        show(
            f"{s.artefact:<{width}}  {s.engine:<{engine}}  {s.precision:<9}  {single:<25}   {offline:<24}"
            f"  {s.offline_certified_per_second:>11.3f}{price}"
        )
