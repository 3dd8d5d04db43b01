"""smx card"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import print_json, show

NAME = "card"


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    certificates: Annotated[
        list[Path] | None, typer.Option("--certificates", help="Certificate file of this model; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: MODEL_CARD.md in the run folder.")] = None,
    json: o.Json = False,
) -> None:
    """Write the model card of a run folder, with the figures of its certificates."""
    import smoothmix_deploy as smx

    result = smx.card(run, certificates=certificates or (), out=out)
    if json:
        print_json({"path": str(result.path), "certificates": result.certificates})
        return
    show(f"{result.path}: figures of {result.certificates} certificates" if certificates else str(result.path))
