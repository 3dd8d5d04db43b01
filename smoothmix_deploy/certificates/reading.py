"""Reading certificate files: every line checked field by field, the first bad one named."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..files import parse_json
from ..records import problem
from .lines import FORMAT_VERSION, SEAL_VERSION, Certificate, Chain, Manifest, Seal, is_written_text

_MOST = 10**9
_LARGEST = 1 << 30
_LONGEST_LINE = 64 << 20
_SELECTION = ("images", "start", "stop", "skip")
_SEAL = b'{"kind": "seal"'
_COUNT_KEY = re.compile("0|[1-9][0-9]{0,8}")


class CorruptFile(BadInput):
    """A line that cannot be what it should be. `line` counts from 1."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")
        self.path, self.line, self.reason = path, line, reason


@dataclass(frozen=True)
class CertificateFile:
    """A parsed certificate file."""

    path: Path
    manifest: Manifest
    certificates: list[Certificate]
    size: int
    """Bytes of whole, valid lines (a torn tail lies after them)."""
    bytes_read: int
    torn: bool
    opening: str
    """The chain digest of the manifest alone."""
    chain: str
    """The chain digest of the manifest and the certificates: of everything but the seal."""
    sha256: str
    """SHA-256 of these same bytes."""
    seal: Seal | None

    @property
    def complete(self) -> bool:
        """Whether there is a line for every image that the manifest selects."""
        return len(self.certificates) == self.manifest.selected


def is_certificate_file(path: Path) -> bool:
    """Whether the file starts like a certificate file (and not like the reference's TSV)."""
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None


def read_certificates(path: Path | str, *, allow_torn_tail: bool = False, exact: bool = False) -> CertificateFile:
    """Parse a certificate file; CorruptFile names the first bad line. A seal is parsed, and checked by `smx verify`.

    With `allow_torn_tail` a last line without a line end, or one that is not JSON, is left out: what a killed or
    still running run leaves. With `exact` every line must be what the writer writes, byte for byte.
    """
    path = Path(path)
    data = _bytes(path)
    *lines, tail = data.split(b"\n")
    torn = bool(tail)
    reader = _Reader(path, exact)
    for number, raw in enumerate(lines, start=1):
        try:
            reader.take(number, raw)
        except CorruptFile:
            last = number == len(lines) > 1 and not tail
            if not (allow_torn_tail and last) or raw.startswith(_SEAL):
                raise
            torn = True
    if torn and not allow_torn_tail:
        raise CorruptFile(path, len(lines) + 1, "the line is cut off (a run that was killed: smx certify --resume)")
    return reader.content(data, torn)


def _bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > _LARGEST:
        raise BadInput(f"{path}: more than {_LARGEST >> 20} MB: not a certificate file")
    return data


class _Reader:
    """Takes the lines of one file in order."""

    def __init__(self, path: Path, exact: bool) -> None:
        self._path, self._exact = path, exact
        self._chain, self._opening = Chain(), ""
        self._manifest: Manifest | None = None
        self._certificates: list[Certificate] = []
        self._seal: Seal | None = None
        self._seen: set[int] = set()
        self._unsealed = self._size = 0

    def take(self, number: int, raw: bytes) -> None:
        """CorruptFile if this line cannot be what comes next."""
        record = _parse(self._path, number, raw)
        if self._seal is not None:
            raise CorruptFile(self._path, number, "a line after the seal")
        line: Manifest | Certificate | Seal
        if self._manifest is None:
            line = self._manifest = _manifest(self._path, number, record)
        elif record.get("kind") == "seal":
            line = self._seal = _seal(self._path, number, record)
        else:
            line = _certificate(self._path, number, record)
            if line.index in self._seen:
                raise CorruptFile(self._path, number, f"a second line for image {line.index}")
        if self._exact and not is_written_text(type(line), record, raw):
            raise CorruptFile(self._path, number, "not byte for byte what smx writes for these values")
        self._size += len(raw) + 1
        if isinstance(line, Seal):
            return
        if isinstance(line, Certificate):
            self._seen.add(line.index)
            self._certificates.append(line)
        self._unsealed = self._size
        self._chain.add(raw)
        self._opening = self._opening or self._chain.digest

    def content(self, data: bytes, torn: bool) -> CertificateFile:
        """All lines so far."""
        if self._manifest is None:
            raise CorruptFile(self._path, 1, "no manifest: not a certificate file, or cut off in its first line")
        sha256 = hashlib.sha256(data[: self._unsealed]).hexdigest()
        return CertificateFile(
            self._path, self._manifest, self._certificates, self._size, len(data), torn,
            self._opening, self._chain.digest, sha256, self._seal,
        )  # fmt: skip


def _parse(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        if len(raw) > _LONGEST_LINE:
            raise ValueError(f"a line of {len(raw) >> 20} MB")
        record = parse_json(raw.decode(), parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise CorruptFile(path, number, f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise CorruptFile(path, number, "not a JSON object")
    return record


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a field stands twice")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


@cache
def _types(cls: type) -> dict[str, str]:
    return {item.name: str(item.type) for item in fields(cls)}


def _typed(path: Path, number: int, record: dict[str, Any], cls: type, kind: str) -> dict[str, Any]:
    if record.get("kind") != kind:
        raise CorruptFile(path, number, f'"kind" is {record.get("kind")!r}, expected "{kind}"')
    types = _types(cls)
    wrong = problem(record, types)
    if wrong is not None:
        raise CorruptFile(path, number, wrong)
    return {name: record[name] for name in types}


def _manifest(path: Path, number: int, record: dict[str, Any]) -> Manifest:
    version = record.get("format_version")
    if record.get("kind") == "manifest" and version != FORMAT_VERSION:
        raise CorruptFile(path, number, f"format version {version!r}; this smx reads version {FORMAT_VERSION}")
    record = {"alpha_family": None, "reuse": None, "commitment": None, **record}  # files from before there were any
    values = _typed(path, number, record, Manifest, "manifest")
    wrong = (
        problem(values["engine"], {"name": "str", "version": "str", "device": "str", "batch_size": "int"})
        or problem(values["artefact"], {"sha256": "str"})
        or problem(values["data"], {"name": "str", "split": "str", "digest": "str", **dict.fromkeys(_SELECTION, "int")})
    )
    if wrong is None and not (2 <= values["num_classes"] <= _MOST and values["engine"]["batch_size"] >= 1):
        wrong = f"impossible num_classes {values['num_classes']} or batch_size {values['engine']['batch_size']}"
    if wrong is None and not all(0 < values[name] <= _MOST for name in ("n", "n0")):
        wrong = "impossible n or n0"
    images, start, stop, skip = (values["data"].get(name) for name in _SELECTION)
    if wrong is None and not (0 <= start < stop <= images <= _MOST and skip >= 1):
        wrong = f"impossible selection {start} .. {stop} step {skip} of {images} images"
    missing = values["data"].get("missing", [])
    if wrong is None and not (isinstance(missing, list) and all(type(index) is int for index in missing)):
        wrong = '"missing" is no list of image indices'
    if wrong is None and not re.fullmatch("[0-9a-f]{32}", values["key"]):
        wrong = f'"key" is {values["key"]!r}, expected 32 hex digits'
    if wrong is not None:
        raise CorruptFile(path, number, wrong)
    return Manifest(**values)


def _certificate(path: Path, number: int, record: dict[str, Any]) -> Certificate:
    values = _typed(path, number, {"reuse": None, **record}, Certificate, "certificate")
    for name in ("selection_counts", "counts"):
        counts = {}
        for key, votes in values[name].items():
            if not _COUNT_KEY.fullmatch(key) or type(votes) is not int or votes < 0:
                raise CorruptFile(path, number, f'"{name}" has {key!r}: {votes!r}, expected class: votes')
            counts[int(key)] = votes
        values[name] = counts
    if not all(-1 <= values[name] <= _MOST for name in ("index", "label", "prediction", "radius", "n")):
        raise CorruptFile(path, number, "impossible index, label, prediction, radius or n")
    return Certificate(**values)


def _seal(path: Path, number: int, record: dict[str, Any]) -> Seal:
    if record.get("format_version") != SEAL_VERSION:
        raise CorruptFile(
            path, number, f"seal version {record.get('format_version')!r}; this smx reads version {SEAL_VERSION}"
        )
    seal = Seal(**_typed(path, number, record, Seal, "seal"))
    for name, digits in (("chain", 64), ("public_key", 64), ("signature", 128)):
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", getattr(seal, name)):
            raise CorruptFile(path, number, f'"{name}" is not {digits} hex digits')
    if not re.fullmatch("[0-9T:+.-]{10,40}", seal.created):
        raise CorruptFile(path, number, '"created" is no date')
    return seal
