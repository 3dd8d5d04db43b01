"""Ed25519 signatures (RFC 8032) of certificate files: keys are PEM files as `openssl genpkey -algorithm ed25519` makes them.

The cryptography is that of the `cryptography` package (extra `sign`), loaded when it is needed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, Unavailable
from ..messages import first_line
from .lines import Seal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAKE_PRIVATE = "make one with: openssl genpkey -algorithm ed25519 -out private.pem"
_MAKE_PUBLIC = "make one with: openssl pkey -in private.pem -pubout -out public.pem"


def sealed(lines: int, complete: bool, chain: str, private_key: Ed25519PrivateKey) -> Seal:
    """The signed seal of so many lines with this chain digest."""
    public_key = private_key.public_key().public_bytes_raw().hex()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    unsigned = Seal(lines, complete, chain, created, public_key, signature="")
    return Seal(lines, complete, chain, created, public_key, private_key.sign(unsigned.message).hex())


def signature_holds(seal: Seal) -> bool:
    """Whether the owner of the seal's public key signed it. Whose key that is, is another question."""
    _cryptography("the file is signed")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(seal.public_key))
        key.verify(bytes.fromhex(seal.signature), seal.message)
    except (InvalidSignature, ValueError):
        return False
    return True


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """BadInput for anything but an unencrypted Ed25519 private key in PEM."""
    _cryptography(f"--key {path}")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _bytes(path)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise BadInput(
            f"--key {path}: is encrypted; decrypt it first (openssl pkey -in {path} -out FILE), or use another key"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput(f"--key {path}: not a private key in PEM; {_MAKE_PRIVATE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"--key {path}: not an Ed25519 key; {_MAKE_PRIVATE}")
    return key


def load_public_key(path: Path) -> str:
    """32 bytes in hex; BadInput for anything but an Ed25519 public key in PEM."""
    _cryptography(f"--key {path}")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _bytes(path)
    if b"PRIVATE KEY" in data:
        raise BadInput(f"--key {path}: is a private key, verification takes the public one; {_MAKE_PUBLIC}")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput(f"--key {path}: not a public key in PEM; {_MAKE_PUBLIC}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"--key {path}: not an Ed25519 key; {_MAKE_PRIVATE}")
    return key.public_bytes_raw().hex()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"--key {path}: cannot be read ({error.strerror})") from None


def _cryptography(what: str) -> Any:
    try:
        import cryptography
    except ImportError as error:
        raise Unavailable(f"{what}: needs cryptography ({first_line(error)}); install smoothmix-deploy[sign]") from None
    return cryptography
