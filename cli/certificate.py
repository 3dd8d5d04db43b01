"""smx certificate"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json

NAME = "certificate"


def command(
    certs: Annotated[Path, typer.Argument(help="Certificate file.")],
    out: Annotated[Path, typer.Option("--out", help="Page to write, .html.")],
    index: Annotated[
        int | None, typer.Option("--index", help="Number of the image; default: the whole data set.")
    ] = None,
    data: o.Data = None,
    data_root: o.DataRoot = None,
    key: Annotated[Path | None, typer.Option("--key", help="Public key (PEM) that must have signed the file.")] = None,
    json: o.Json = False,
) -> None:
    """A certificate for people: one page that says what is proved, and how to check it. --data shows the image."""
    import smoothmix_deploy as smx

    path = smx.certificate(certs, out=out, index=index, data=data, data_root=data_root, key=key)
    note(f"wrote {path}")
    if json:
        print_json({"path": str(path)})
