"""smx import"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json, show

NAME = "import"


def command(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint.pth.tar of the reference family.")],
    data: Annotated[str, typer.Option("--data", help="Fixes classes, image shape and normalisation.")],
    sigma: Annotated[float, typer.Option("--sigma", help="Noise level it was trained with.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    arch: Annotated[str | None, typer.Option("--arch", help="Default: the one the checkpoint names.")] = None,
    data_root: o.DataRoot = None,
    json: o.Json = False,
) -> None:
    """Turn a published checkpoint into a run folder."""
    import smoothmix_deploy as smx

    result = smx.import_checkpoint(checkpoint, data=data, sigma=sigma, out=out, arch=arch, data_root=data_root)
    if json:
        print_json({"path": str(result.path), "arch": result.arch, "parameters": result.parameters})
        return
    show(f"{result.path}: {result.arch}, {result.parameters:,} parameters")
    note(f"next: smx export {result.path} --out DIR")
