"""`smx verify`: are these certificates what their votes prove, is the file as it was signed, and does the engine still
vote like that?

The first two need neither the engine nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..certificates import CertificateFile, CorruptFile, Seal, read_certificates
from ..errors import BadInput, CheckFailed
from ..progress import Progress, silent
from .commitment import check_commitment
from .recompute import Terms, check_lines, terms_of
from .reuse_record import check_against


@dataclass(frozen=True)
class VerifyResult:
    """All checks passed. `expected_images` is how many the manifest selects; fewer certificates mean an
    unfinished run, or a merge of some of its shards."""

    path: Path
    certificates: int
    expected_images: int
    chain: str
    """Digest of manifest and certificates, line by line (hex): what one publishes or has timestamped."""
    signed_by: str | None
    """SHA-256 of the public key that signed the file; None: not signed."""
    signed_at: str | None
    """As the signer says."""
    key_checked: bool
    """Whether that was the key given."""
    commitment: str | None
    """What the noise key was committed to with; None: nothing."""
    challenge: str | None
    artefact: str | None
    """"same file" or, for `rerun` on another engine, "same weights"; None: not asked."""
    rerun: list[int]
    """Indices of the images that were sampled again."""
    same_engine: bool | None


def verify(
    certs: Path | str,
    *,
    key: Path | str | None = None,
    commitment: str | None = None,
    challenge: str | None = None,
    artefact: Path | str | None = None,
    rerun: int = 0,
    fresh: bool = False,
    data: str | None = None,
    data_root: Path | str | None = None,
    engine: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    reuse_file: Path | str | None = None,
    progress: Progress = silent,
) -> VerifyResult:
    """Check a certificate file. CheckFailed names the first bad line; BadInput: missing file or option.

    `key`: a public key in PEM, which must have signed the file. `commitment` and `challenge`: what was published before
    sampling (`commit`). `artefact`: its digest must be the manifest's; needed for `rerun` of that many randomly chosen
    images, `fresh` with noise of their own. `reuse_file`: the earlier file, of a file made with --reuse; it must be that
    one, and stand the same checks. Unavailable: the file is signed, and the `cryptography` package is missing.
    """
    path = Path(certs)
    _check_options(artefact, rerun, fresh)
    content, terms = checked(path, key)
    check_commitment(f"{path}, line 1", terms.committed, commitment, challenge)
    if reuse_file is not None:
        check_against(path, content.manifest, content.certificates, checked(Path(reuse_file))[0])
    found: tuple[str | None, list[int], bool | None] = None, [], None
    if artefact is not None:
        from .rerun import Request, check_artefact

        request = Request(rerun, data, data_root, engine, device, seed, fresh)
        found = check_artefact(content, len(terms.sample_numbers), Path(artefact), request, progress)
    seal, committed = content.seal, terms.committed
    return VerifyResult(
        path=path,
        certificates=len(content.certificates),
        expected_images=content.manifest.selected,
        chain=content.chain,
        signed_by=seal.fingerprint if seal else None,
        signed_at=seal.created if seal else None,
        key_checked=key is not None,
        commitment=committed.commitment if committed else None,
        challenge=committed.challenge if committed else None,
        artefact=found[0],
        rerun=found[1],
        same_engine=found[2],
    )


def checked(path: Path, key: Path | str | None = None) -> tuple[CertificateFile, Terms]:
    """The content of a file that is whole: every line follows from its votes, and the seal, if any, from the lines.

    With `key` (a PEM file) the seal must be there and made with it. CheckFailed names the first bad line.
    """
    public_key = None if key is None else _public_key(Path(key))
    try:
        content = read_certificates(path, exact=True)
    except CorruptFile as error:
        raise CheckFailed(str(error)) from None
    terms = terms_of(content)
    check_lines(content, terms)
    _check_seal(content, public_key)
    return content, terms


def _check_options(artefact: Path | str | None, rerun: int, fresh: bool) -> None:
    if rerun < 0:
        raise BadInput(f"--rerun {rerun}: must be at least 0")
    if rerun and artefact is None:
        raise BadInput("--rerun: needs --artefact, the model to sample again")
    if fresh and not rerun:
        raise BadInput("--fresh: goes with --rerun")


def _public_key(path: Path) -> str:
    from ..certificates.signature import load_public_key

    return load_public_key(path)


def _check_seal(content: CertificateFile, public_key: str | None) -> None:
    """CheckFailed unless the seal is of these lines and its signature, by `public_key` if given, holds."""
    seal, line = content.seal, len(content.certificates) + 2
    if seal is None:
        if public_key is not None:
            raise CheckFailed(f"{content.path}, line {line - 1}: the last line; the file is not signed")
        return
    reason = _wrong_seal(content, seal, public_key)
    if reason:
        raise CheckFailed(f"{content.path}, line {line}: {reason}")


def _wrong_seal(content: CertificateFile, seal: Seal, public_key: str | None) -> str | None:
    from ..certificates.signature import signature_holds

    if not signature_holds(seal):
        return "the signature does not hold: this seal has been altered"
    if seal.chain != content.chain:
        return f"what was signed has chain digest {seal.chain[:12]}..., the lines above have {content.chain[:12]}...: altered"
    if seal.lines != len(content.certificates) + 1 or seal.complete != content.complete:
        return f"says {seal.lines} lines, complete {seal.complete}, which does not fit the lines above"
    if public_key is not None and seal.public_key != public_key:
        return f"signed by another key than the one given (SHA-256 {seal.fingerprint})"
    return None
