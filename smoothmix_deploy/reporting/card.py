"""`smx card`: the model card of a run folder, with the figures of certificate files that are about its weights.

The card is what others will believe, so a file counts only if it is complete, follows from its votes and names the
digest of these weights, its own or that of the weights it was exported from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artefacts import Artefact, open_artefact
from ..certificates import read_certificates
from ..certification.verify import verify
from ..errors import BadInput, CheckFailed
from ..files import check_writable
from ..models.card import write_card
from ..models.run_folder import CARD, load_model, read_config
from .report import report


@dataclass(frozen=True)
class CardResult:
    """The card, and how many certificates its figures come from."""

    path: Path
    certificates: int


def card(run: Path | str, *, certificates: Sequence[Path | str] = (), out: Path | str | None = None) -> CardResult:
    """Write the card of the run folder `run` to `out` (default: MODEL_CARD.md in it).

    BadInput: no run folder, unreadable files. CheckFailed: a certificate file that is about other weights, unfinished,
    or does not follow from its votes.
    """
    artefact = open_artefact(run)
    if artefact.kind != "run":
        raise BadInput(f"{run}: {artefact.description} has no card; name the run folder that it was exported from")
    path = artefact.path / CARD if out is None else Path(out)
    check_writable(path, "--out")
    total = sum(_check(Path(file), artefact) for file in certificates)
    model = load_model(artefact.path, read_config(artefact.path))
    figures = report(*certificates) if certificates else None
    write_card(artefact.path, path, parameters=sum(p.numel() for p in model.parameters()), report=figures)
    return CardResult(path, total)


def _check(certs: Path, run: Artefact) -> int:
    """How many certificates the file has, all of them about the weights of `run`. CheckFailed otherwise."""
    about = read_certificates(certs).manifest.artefact
    said = about.get("weights_sha256")
    if run.weights_sha256 not in (said, about["sha256"]):
        what = f"weights with SHA-256 {said[:12]}..." if isinstance(said, str) else "a file that names no weights"
        raise CheckFailed(
            f"{certs}, line 1: these certificates are for {what}, {run.file} has {run.sha256[:12]}...: another model"
        )
    checked = verify(certs)
    if checked.certificates < checked.expected_images:
        raise CheckFailed(
            f"{certs}: {checked.certificates} of {checked.expected_images} images: finish the run first "
            "(smx certify --resume, smx merge)"
        )
    return checked.certificates
