"""`smx commit`: a promise about the noise, published before sampling and opened by the certificate file.

The certifier draws a secret for one artefact and publishes its hash, the commitment. The auditor answers with a
challenge of her own (or one names a public beacon's value of a later time). The noise key is a hash of both: neither side
could choose it. The manifest discloses secret and challenge, so `smx verify --commitment HEX --challenge TEXT` can check
all of it. A coin flip by telephone (Blum 1983). Knows nothing about sampling.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..artefacts import open_artefact
from ..certificates import Manifest
from ..errors import BadInput, CheckFailed
from ..files import check_writable, read_json, to_json
from ..noise.gaussian import KEY_BITS
from ..records import problem

FORMAT_VERSION = 1
_HEX = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class KeyFile:
    """What `smx commit` writes. Whoever has it knows the noise: it stays private until the certificates are out."""

    secret: str
    """256 bits from the operating system, hex."""
    artefact_sha256: str
    commitment: str
    """To be published; hex."""
    created: str
    kind: str = "noise-key"
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class CommittedKey:
    """A noise key that follows from a commitment."""

    commitment: str
    secret: str
    challenge: str | None

    @property
    def key(self) -> str:
        """128 bits, hex: what the secret and the challenge make together."""
        challenge = "" if self.challenge is None else self.challenge
        return _sha256("smoothmix_deploy noise key", self.secret, challenge)[: KEY_BITS // 4]

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def commitment_of(secret: str, artefact_sha256: str) -> str:
    """Hides the secret, and binds to it and to one artefact."""
    return _sha256("smoothmix_deploy noise commitment", secret, artefact_sha256)


def _sha256(*parts: str) -> str:
    """Of the parts as a JSON list: no two lists have the same text."""
    return hashlib.sha256(to_json(parts).encode()).hexdigest()


def commit(artefact: Path | str, *, out: Path | str) -> KeyFile:
    """Draw a secret for `artefact` and write it to `out`, readable for its owner alone. BadInput if that exists."""
    out = Path(out)
    check_writable(out, "--out")
    if out.exists():
        raise BadInput(f"--out {out}: exists; a secret serves one run, choose another")
    sha256, secret = open_artefact(artefact).sha256, secrets.token_hex(32)
    made = KeyFile(secret, sha256, commitment_of(secret, sha256), datetime.now(UTC).isoformat(timespec="seconds"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(to_json(asdict(made), indent=2) + "\n")
    return made


def committed_key(
    key_file: Path | str | None, challenge: str | None, artefact_sha256: str, *, seed: int | None, reuse: object
) -> CommittedKey | None:
    """The key of `smx certify --key-file`; None without. BadInput for a file that is none or for another artefact."""
    if key_file is None:
        if challenge is not None:
            raise BadInput("--challenge: goes with --key-file, the secret that was committed to before")
        return None
    if seed is not None or reuse is not None:
        raise BadInput(
            f"--key-file {key_file}: does not go with {'--reuse' if seed is None else '--seed'}, which has a key"
        )
    if challenge is not None and not (challenge and challenge.isprintable()):
        raise BadInput(f"--challenge {challenge!a}: must be printable text on one line")
    record = read_json(Path(key_file), "the file that smx commit writes")
    version = record.get("format_version")
    wrong = problem(record, {item.name: str(item.type) for item in KeyFile.__dataclass_fields__.values()})
    if wrong is None and (record["kind"] != "noise-key" or version != FORMAT_VERSION):
        wrong = f"kind {record['kind']!r}, version {version!r}; this smx reads noise-key, version {FORMAT_VERSION}"
    if wrong is None and not _HEX.fullmatch(record["secret"]):
        wrong = '"secret" is not 64 hex digits'
    if wrong is None and record["commitment"] != commitment_of(record["secret"], record["artefact_sha256"]):
        wrong = "the commitment is not that of its secret and artefact"
    if wrong is not None:
        raise BadInput(f"--key-file {key_file}: {wrong}")
    if record["artefact_sha256"] != artefact_sha256:
        raise BadInput(
            f"--key-file {key_file}: committed for SHA-256 {record['artefact_sha256'][:12]}..., "
            f"the artefact has {artefact_sha256[:12]}..."
        )
    return CommittedKey(record["commitment"], record["secret"], challenge)


def check_disclosure(manifest: Manifest) -> CommittedKey | None:
    """What the manifest discloses; ValueError unless its key, its artefact and the commitment follow from it."""
    if manifest.commitment is None:
        return None
    wrong = problem(manifest.commitment, {"commitment": "str", "secret": "str", "challenge": "str | None"})
    if wrong is not None:
        raise ValueError(f"commitment: {wrong}")
    found = CommittedKey(*(manifest.commitment[name] for name in ("commitment", "secret", "challenge")))
    if found.commitment != commitment_of(found.secret, manifest.artefact["sha256"]):
        raise ValueError("commitment: not that of this secret and this artefact")
    if found.key != manifest.key:
        raise ValueError("commitment: the noise key is not that of this secret and this challenge")
    return found


def check_commitment(where: str, found: CommittedKey | None, commitment: str | None, challenge: str | None) -> None:
    """CheckFailed unless the disclosure opens the commitment that was published and answers the challenge."""
    if commitment is None and challenge is None:
        return
    if commitment is not None and not _HEX.fullmatch(commitment.lower()):
        raise BadInput(f"--commitment {commitment}: expected 64 hex digits, as smx commit prints them")
    if found is None:
        raise CheckFailed(f"{where}: the key was not committed to (smx certify without --key-file)")
    if commitment is not None and found.commitment != commitment.lower():
        raise CheckFailed(f"{where}: opens the commitment {found.commitment[:12]}..., not {commitment[:12]}...")
    if challenge is not None and found.challenge != challenge:
        raise CheckFailed(f"{where}: the key is made with challenge {found.challenge!r}, not {challenge!r}")
