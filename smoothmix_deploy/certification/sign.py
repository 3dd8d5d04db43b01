"""`smx sign`: the certifier stands for a certificate file with an Ed25519 key; nothing in it can change from then on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..certificates import read_certificates
from ..certificates.signature import load_private_key, sealed
from ..certificates.writing import append_seal
from ..errors import BadInput
from .verify import verify


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
    found = verify(path)
    if found.signed_by is not None:
        raise BadInput(f"{path}: is signed already, by {found.signed_by}; to sign it anew, remove its last line first")
    complete = found.certificates == found.expected_images
    if not complete and not unfinished:
        raise BadInput(
            f"{path}: has {found.certificates} of {found.expected_images} images; finish it first (smx certify --resume), "
            "or sign it as it is with --unfinished"
        )
    content = read_certificates(path)
    if content.chain != found.chain:
        raise BadInput(f"{path}: has changed while it was checked; run the command again")
    seal = sealed(found.certificates + 1, complete, found.chain, private_key)
    append_seal(content, seal)
    return SignResult(path, found.certificates, complete, found.chain, seal.fingerprint)
