"""The lines of a certificate file: what they hold, and the one text that each of them has.

A line's text is JSON with the fields in the order of their class, `kind` first, Python's number format, UTF-8 and a line
feed. The chain digest runs over these bytes, so it stands for the content and for every byte of the file at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

from ..files import to_json

FORMAT_VERSION = 1
SEAL_VERSION = 1
_LEFT_OUT_IF_NONE = ("reuse", "commitment")
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True)
class Manifest:
    """What was certified, how, and with which randomness. Line 1 of a certificate file."""

    sigma: float
    alpha: float
    n0: int
    n: int
    rule: str
    noise: str
    generator: str
    key: str
    """128 bits in hex; every noise value is a function of (key, image index, sample number)."""
    key_chosen_by_user: bool
    seed: int | None
    artefact: dict[str, Any]
    """name, kind, sha256 of the file that was run, weights_sha256, precision."""
    engine: dict[str, Any]
    """name, version, device, batch_size, threads."""
    data: dict[str, Any]
    """name, split, digest, images in the set, start, stop, skip."""
    num_classes: int
    class_names: list[str] | None
    self_test: dict[str, Any]
    versions: dict[str, str]
    created: str
    rule_parameters: dict[str, Any] = field(default_factory=dict)
    alpha_family: float | None = None
    """Error of all selected images together; `alpha` is this over their number. None: `alpha` was chosen for each."""
    reuse: dict[str, Any] | None = None
    """The earlier file that it rests on, and the shares of alpha (`certification.reuse_record`). Not written if None."""
    commitment: dict[str, Any] | None = None
    """Where the key was committed to before: secret and challenge (`certification.commitment`). Not written if None."""
    kind: str = "manifest"
    format_version: int = FORMAT_VERSION

    @property
    def images(self) -> Sequence[int]:
        """The indices that a finished file has lines for, in their order: those selected, less what shards left out."""
        selection = range(*(int(self.data[name]) for name in ("start", "stop", "skip")))
        missing = set(self.data.get("missing", ()))
        return [i for i in selection if i not in missing] if missing else selection

    @property
    def selected(self) -> int:
        """How many images were asked for, those that `smx merge --partial` left out included."""
        return len(range(*(int(self.data[name]) for name in ("start", "stop", "skip"))))


@dataclass(frozen=True)
class Certificate:
    """One image: inside the L2 ball of `radius` round it the smoothed classifier answers `prediction`.

    `counts` and `selection_counts` map classes to votes (classes without votes are left out; votes that were not a
    class, NaN or Inf logits, are in `n` alone). `radius` is in [0, 1] pixel units; `prediction` -1 abstains.
    `seconds` is this image's share of the run's wall time: the only field that is not reproducible.
    """

    index: int
    label: int
    prediction: int
    radius: float
    correct: bool
    n: int
    selection_counts: dict[int, int]
    counts: dict[int, int]
    p_lower: float
    seconds: float
    reuse: dict[str, Any] | None = None
    """Votes of the earlier line and disagreements, where the certificate rests on them. Not written if None."""
    kind: str = "certificate"


@dataclass(frozen=True)
class Seal:
    """The last line of a signed file: who stands for the lines above it."""

    lines: int
    """How many lines are above this one."""
    complete: bool
    """Whether they are all the images that the manifest selects."""
    chain: str
    """The chain digest of these lines, hex."""
    created: str
    public_key: str
    """Ed25519 (RFC 8032), 32 bytes in hex."""
    signature: str
    """64 bytes in hex, over `message`."""
    kind: str = "seal"
    format_version: int = SEAL_VERSION

    @property
    def message(self) -> bytes:
        """What is signed: everything in this line, and through the chain every line above it."""
        values = asdict(self)
        del values["signature"]
        return b"smoothmix_deploy seal\n" + to_json(values).encode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key in DER, hex: `openssl pkey -pubin -in public.pem -outform DER | sha256sum`."""
        return hashlib.sha256(bytes.fromhex("302a300506032b6570032100" + self.public_key)).hexdigest()


class Chain:
    """SHA-256 chain over lines: h_0 = 32 zero bytes, h_i = SHA-256(h_(i-1) + line i with its line feed)."""

    def __init__(self) -> None:
        self._digest = bytes(32)

    def add(self, line: bytes) -> None:
        """One more line, without its line feed."""
        self._digest = hashlib.sha256(self._digest + line + b"\n").digest()

    @property
    def digest(self) -> str:
        """Of all lines so far, hex."""
        return self._digest.hex()


def text_of(line: Manifest | Certificate | Seal) -> str:
    """The line, with its line feed."""
    return to_json(_ordered(type(line), vars(line))) + "\n"


def is_written_text(cls: type, record: Mapping[str, Any], raw: bytes) -> bool:
    """Whether `raw`, which says `record`, is what the writer writes for it, byte for byte.

    Fields that files of before do not have may be missing.
    """
    ordered = _ordered(cls, record)
    try:
        return len(ordered) == len(record) and _encode(ordered).encode() == raw
    except ValueError:  # an infinite number, half a surrogate pair
        return False


@cache
def _names(cls: type) -> tuple[str, ...]:
    return ("kind", *(item.name for item in fields(cls) if item.name != "kind"))


def _ordered(cls: type, record: Mapping[str, Any]) -> dict[str, Any]:
    return {n: record[n] for n in _names(cls) if n in record and not (n in _LEFT_OUT_IF_NONE and record[n] is None)}
