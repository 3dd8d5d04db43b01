"""smx demo"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .bench import print_table
from .terminal import note, print_json, progress_bar, show

NAME = "demo"


def command(
    out: Annotated[Path, typer.Option("--out", help="New folder for everything.")] = Path("smx-demo"),
    n: Annotated[int, typer.Option("--n", help="Samples of a certificate.")] = 5_000,
    seed: o.Seed = None,
    json: o.Json = False,
) -> None:
    """Train, export, certify, verify, benchmark and report on embedded data: two minutes, no network, no GPU."""
    import smoothmix_deploy as smx

    with progress_bar() as progress:
        result = smx.demo(out=out, n=n, seed=seed, progress=progress, note=note)
    if json:
        print_json(
            {"path": str(result.path), "plot": str(result.plot), "page": str(result.page), "seconds": result.seconds,
             "report": result.report.record(), "bench": result.bench.record()}
        )  # fmt: skip
        return
    show(result.report.table())
    print()
    print_table(result.bench)
    show(f"\ndone in {result.seconds:.0f} s: open {result.page} or {result.plot}")
