"""smx merge"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json

NAME = "merge"


def command(
    shards: Annotated[list[Path], typer.Argument(help="Certificate files of smx certify --shard.")],
    out: Annotated[Path, typer.Option("--out", help="Certificate file to write.")],
    partial: Annotated[bool, typer.Option("--partial", help="Also if images are missing.")] = False,
    json: o.Json = False,
) -> None:
    """Put the certificate files of shards together: the file that one run would have written."""
    from dataclasses import asdict

    import smoothmix_deploy as smx

    result = smx.merge(shards, out=out, partial=partial)
    if result.missing:
        note(f"note: {len(result.missing)} images have no certificate")
    s = result.summary
    if json:
        print_json({"path": str(result.path), **asdict(s), "missing": result.missing})
        return
    print(f"{result.path}: {s.images} images, ACR {s.acr:.3f}, accuracy {s.accuracy:.3f}, abstained {s.abstained:.3f}")
