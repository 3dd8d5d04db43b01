"""smx commit"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json, show

NAME = "commit"


def command(
    artefact: Annotated[Path, typer.Argument(help="What will be certified.")],
    out: Annotated[Path, typer.Option("--out", help="Key file to write; private until the certificates are out.")],
    json: o.Json = False,
) -> None:
    """Draw the secret of a noise key and print a commitment to it, to be published before sampling."""
    import smoothmix_deploy as smx

    result = smx.commit(artefact, out=out)
    if json:
        print_json({"path": str(out), "commitment": result.commitment, "artefact_sha256": result.artefact_sha256})
        return
    show(result.commitment)
    note(f"publish this, then: smx certify {artefact} --key-file {out} --challenge TEXT (what the auditor answers)")
