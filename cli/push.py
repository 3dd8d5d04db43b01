"""smx push"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import print_json, show

NAME = "push"


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    repo: Annotated[str, typer.Option("--repo", help="Model repository, user/name; created if need be.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is for you alone.")] = False,
    json: o.Json = False,
) -> None:
    """Publish a run folder (weights, configuration, card, metrics, plot) on the Hugging Face Hub."""
    import smoothmix_deploy as smx

    result = smx.push(run, repo=repo, private=private)
    if json:
        print_json(asdict(result))
        return
    show(f"{result.url}: {', '.join(result.files)}")
