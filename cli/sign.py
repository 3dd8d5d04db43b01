"""smx sign"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json, show

NAME = "sign"


def command(
    certs: Annotated[Path, typer.Argument(help="Certificate file.")],
    key: Annotated[Path, typer.Option("--key", help="Ed25519 private key, PEM: openssl genpkey -algorithm ed25519.")],
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Sign a file that lacks images.")] = False,
    json: o.Json = False,
) -> None:
    """Sign a certificate file: from then on no byte of it can change unnoticed."""
    from dataclasses import asdict

    import smoothmix_deploy as smx

    result = smx.sign(certs, key=key, unfinished=unfinished)
    if json:
        print_json({**asdict(result), "path": str(result.path)})
        return
    show(f"{result.path}: {result.certificates} certificates signed by key {result.signed_by}")
    show(f"chain digest: {result.chain}")
    note(f"next: smx verify {result.path} --key public.pem")
