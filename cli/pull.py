"""smx pull"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json, show

NAME = "pull"


def command(
    repo: Annotated[str, typer.Argument(help="Model repository, user/name.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    json: o.Json = False,
) -> None:
    """Download a run folder from the Hugging Face Hub, checked."""
    import smoothmix_deploy as smx

    result = smx.pull(repo, out=out, revision=revision)
    if json:
        print_json({**asdict(result), "path": str(result.path)})
        return
    show(f"{result.path}: {repo} at {result.revision[:12]}, weights {result.weights_sha256[:12]}")
    note(f"next: smx export {result.path} --out DIR")
