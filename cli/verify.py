"""smx verify"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import incomplete, note, print_json, progress_bar, show

NAME = "verify"


def command(
    certs: Annotated[Path, typer.Argument(help="Certificate file.")],
    key: Annotated[Path | None, typer.Option("--key", help="Public key (PEM) that must have signed the file.")] = None,
    commitment: Annotated[
        str | None, typer.Option("--commitment", help="What smx commit printed: the noise key must follow from it.")
    ] = None,
    challenge: Annotated[
        str | None, typer.Option("--challenge", help="The auditor's text: it must be in the noise key.")
    ] = None,
    artefact: Annotated[
        Path | None, typer.Option("--artefact", help="Check that the certificates are for this one.")
    ] = None,
    rerun: Annotated[int, typer.Option("--rerun", help="Sample this many randomly chosen images again.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="For --rerun: with new noise, even on the same engine.")
    ] = False,
    data: o.Data = None,
    data_root: o.DataRoot = None,
    engine: Annotated[str | None, typer.Option("--engine", help="For --rerun; default: the one of the file.")] = None,
    device: o.Device = "auto",
    seed: o.Seed = None,
    reuse_file: Annotated[
        Path | None, typer.Option("--reuse-file", help="The earlier file, of a file made with --reuse.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Recompute every radius from its votes; check signature and digests; sample some images again."""
    from dataclasses import asdict

    import smoothmix_deploy as smx

    with progress_bar() as progress:
        result = smx.verify(
            certs, key=key, commitment=commitment, challenge=challenge, artefact=artefact, rerun=rerun, fresh=fresh,
            data=data, data_root=data_root, engine=engine, device=device, seed=seed, reuse_file=reuse_file, progress=progress,
        )  # fmt: skip
    if result.certificates < result.expected_images:
        note(incomplete(result.path, result.certificates, result.expected_images))
    if json:
        print_json({**asdict(result), "path": str(result.path), "valid": True})
        return
    show(f"{result.path}: {result.certificates} certificates follow from their votes")
    show(f"chain digest: {result.chain}")
    if result.signed_by is not None:
        whose = "the key given" if result.key_checked else "whose key this is was not checked (--key)"
        show(f"signed {result.signed_at} by key {result.signed_by}: {whose}")
    if result.commitment is not None:
        answered = "no challenge" if result.challenge is None else f"challenge {result.challenge!r}"
        against = "" if commitment else ", which was not compared with a published one (--commitment)"
        show(f"noise key from commitment {result.commitment} and {answered}{against}")
    if result.artefact is not None:
        same_file = result.artefact == "same file"
        show(
            "the artefact is the one that was certified"
            if same_file
            else "the artefact is another file with the weights of the one that was certified"
        )
    if result.rerun:
        how = "votes with new noise consistent" if fresh or not result.same_engine else "identical votes"
        how += " on the same engine" if result.same_engine else " on another engine"
        show(f"{len(result.rerun)} images sampled again: {how}")
