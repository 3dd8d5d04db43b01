"""smx report"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import incomplete, note, numbers, print_json, show

NAME = "report"


def command(
    files: Annotated[list[Path], typer.Argument(help="certs.jsonl files, or tables of the reference.")],
    radii: Annotated[
        str | None, typer.Option("--radii", help="e.g. 0,0.25,0.5; default: as far as anything is proved.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="table, markdown, latex, csv or json.")] = "table",
    sigma: Annotated[
        float | None, typer.Option("--sigma", help="Noise level of tables whose name does not tell.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the curve: .png, .svg or .pdf.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a self-contained page.")] = None,
    json: o.Json = False,
) -> None:
    """Certified accuracy at radii, ACR, accuracy and abstentions of certificate files."""
    import smoothmix_deploy as smx
    from smoothmix_deploy.reporting.table import FORMATS

    if format not in FORMATS:
        raise smx.BadInput(f"--format {format}: must be one of {', '.join(FORMATS)}")
    result = smx.report(*files, radii=numbers(radii, "--radii"), sigma=sigma, plot=plot, html=html)
    for f in result.files:
        if f.manifest is not None and f.summary.images < f.manifest.selected:
            note(incomplete(f.file, f.summary.images, f.manifest.selected))
    for path in (plot, html):
        if path is not None:
            note(f"wrote {path}")
    if json or format == "json":
        print_json(result.record())
    else:
        show(result.table(format))
