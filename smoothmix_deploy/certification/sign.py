"""`smx sign`: the certifier stands for a certificate file with an Ed25519 key; nothing in it can change from then on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..certificates.signature import load_private_key, sealed
from ..certificates.writing import append_seal
from ..errors import BadInput
from .verify import checked


@dataclass(frozen=True)
class SignResult:
    """The file is signed."""

    path: Path
    certificates: int
    complete: bool
    chain: str
    signed_by: str
    """SHA-256 of the public key in DER, hex."""


def sign(certs: Path | str, *, key: Path | str, unfinished: bool = False) -> SignResult:
    """Verify the lines of `certs`, then append a seal signed with the Ed25519 private key in the PEM file `key`.

    CheckFailed for a file that does not verify; BadInput for one that is signed already, or has fewer images than its
    manifest selects (unless `unfinished`). Unavailable without the `cryptography` package.
    """
    path = Path(certs)
    private_key = load_private_key(Path(key))
    content, _ = checked(path)
    certificates, selected = len(content.certificates), content.manifest.selected
    if content.seal is not None:
        raise BadInput(
            f"{path}: is signed already, by {content.seal.fingerprint}; to sign it anew, remove its last line first"
        )
    if not content.complete and not unfinished:
        raise BadInput(
            f"{path}: has {certificates} of {selected} images; finish it first (smx certify --resume, smx merge), "
            "or sign it as it is with --unfinished"
        )
    seal = sealed(certificates + 1, content.complete, content.chain, private_key)
    append_seal(content, seal)
    return SignResult(path, certificates, content.complete, content.chain, seal.fingerprint)
