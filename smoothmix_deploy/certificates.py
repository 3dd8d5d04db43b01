"""Certificate files (`certs.jsonl`): the one place that writes and reads them.

First line a manifest, then a line an image, in data-set order. The manifest and a line's counts are enough to
recompute its radius. Append-only: a killed run leaves whole lines and at most one torn line, which a resumed run
drops. Knows nothing about engines or sampling.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .errors import BadInput, Stopped
from .files import to_json
from .records import fits, problem

FORMAT_VERSION = 1
_MOST = 10**9
_SELECTION = ("images", "start", "stop", "skip")


class CorruptFile(BadInput):
    """A line that cannot be what it should be. `line` counts from 1."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")
        self.path, self.line, self.reason = path, line, reason


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
    """The earlier file that it rests on, and the shares of alpha (`certification.reuse_record`)."""
    kind: str = "manifest"
    format_version: int = FORMAT_VERSION


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
class CertificateFile:
    """A parsed certificate file. `size` is the number of bytes of whole, valid lines (a torn tail lies after it)."""

    path: Path
    manifest: Manifest
    certificates: list[Certificate]
    size: int
    bytes_read: int
    torn: bool


def _line_of(record: Manifest | Certificate) -> str:
    """`kind` first, then the fields in their order."""
    values = asdict(record)
    if values["reuse"] is None:
        del values["reuse"]
    return to_json({"kind": values.pop("kind"), **values}) + "\n"


class CertificateWriter:
    """Appends certificates to a file, a whole flushed line at a time. Use as a context manager."""

    def __init__(self, path: Path, begin: Manifest | CertificateFile) -> None:
        """Start a new file with a manifest, or go on with one that was read (dropping its torn tail)."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end = 0
        if isinstance(begin, Manifest):
            try:
                self._file: IO[bytes] = open(path, "xb")  # noqa: SIM115 - closed in __exit__
            except FileExistsError:
                raise BadInput(f"{path}: another smx process has begun this file; choose another --out") from None
            _lock(self._file, path)
            self._append(_line_of(begin))
        else:
            self._file = open(path, "r+b")  # noqa: SIM115 - closed in __exit__
            _lock(self._file, path)
            if os.fstat(self._file.fileno()).st_size != begin.bytes_read:
                self._file.close()
                raise BadInput(f"{path}: another smx process has written to this file; run the command again")
            self._end = begin.size
            self._file.truncate(self._end)
            self._file.seek(self._end)

    def write(self, certificate: Certificate) -> None:
        """Append one line and hand it to the operating system. On a full disk: Stopped, the file left whole."""
        self._append(_line_of(certificate))

    def _append(self, line: str) -> None:
        data = line.encode()
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            self._drop_torn_tail()
            raise Stopped(
                f"{self.path}: cannot write ({error.strerror}); every line so far is kept: "
                "make room, then run the same command with --resume"
            ) from None
        self._end += len(data)

    def _drop_torn_tail(self) -> None:
        with contextlib.suppress(OSError):  # a torn last line is recognised and dropped on resumption
            os.truncate(self.path, self._end)

    def __enter__(self) -> CertificateWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            with contextlib.suppress(OSError):  # unflushed bytes on a full disk: reported by write() already
                self._file.close()


def _lock(file: IO[bytes], path: Path) -> None:
    """Two runs on one file would interleave their lines; the second one is refused."""
    try:
        import fcntl
    except ImportError:  # no such lock on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BadInput(
            f"{path}: another smx process is writing to this file; wait for it or choose another --out"
        ) from None


def refuse_if_locked(path: Path) -> None:
    """BadInput if a run is writing to `path`. The system drops a dead process's lock."""
    with open(path, "rb") as file:
        _lock(file, path)


def is_certificate_file(path: Path) -> bool:
    """Whether the file starts like a certificate file (and not like the reference's TSV)."""
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None


def read_certificates(path: Path | str, *, allow_torn_tail: bool = False) -> CertificateFile:
    """Parse a certificate file; CorruptFile names the first bad line.

    With `allow_torn_tail` a last line without a line end, or one that is not JSON, is left out: what a killed or
    still running run leaves.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    manifest: Manifest | None = None
    certificates: list[Certificate] = []
    seen: set[int] = set()
    size, torn = 0, False
    lines = data.split(b"\n")
    for number, raw in enumerate(lines, start=1):
        if number == len(lines):  # what follows the last line end
            torn = bool(raw)
            break
        try:
            record = _parse(path, number, raw)
            if manifest is None:
                manifest = _manifest(path, number, record)
            else:
                certificate = _certificate(path, number, record)
                if certificate.index in seen:
                    raise CorruptFile(path, number, f"a second line for image {certificate.index}")
                seen.add(certificate.index)
                certificates.append(certificate)
        except CorruptFile:
            if allow_torn_tail and number > 1 and number == len(lines) - 1 and lines[-1] == b"":
                torn = True
                break
            raise
        size += len(raw) + 1
    if torn and not allow_torn_tail:
        raise CorruptFile(path, len(lines), "the line is cut off (a run that was killed: smx certify --resume)")
    if manifest is None:
        raise CorruptFile(path, 1, "no manifest: not a certificate file, or cut off in its first line")
    return CertificateFile(path, manifest, certificates, size, len(data), torn)


def _parse(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
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


def _typed(path: Path, number: int, record: dict[str, Any], cls: type, kind: str) -> dict[str, Any]:
    if record.get("kind") != kind:
        raise CorruptFile(path, number, f'"kind" is {record.get("kind")!r}, expected "{kind}"')
    types = {item.name: str(item.type) for item in fields(cls)}
    wrong = problem(record, types)
    if wrong is not None:
        raise CorruptFile(path, number, wrong)
    return {name: record[name] for name in types}


def _manifest(path: Path, number: int, record: dict[str, Any]) -> Manifest:
    version = record.get("format_version")
    if record.get("kind") == "manifest" and version != FORMAT_VERSION:
        raise CorruptFile(path, number, f"format version {version!r}; this smx reads version {FORMAT_VERSION}")
    record = {"alpha_family": None, "reuse": None, **record}  # files from before there were any
    values = _typed(path, number, record, Manifest, "manifest")
    wrong = (
        problem(values["engine"], {"name": "str", "version": "str", "device": "str", "batch_size": "int"})
        or problem(values["artefact"], {"sha256": "str"})
        or problem(values["data"], {"name": "str", "split": "str", "digest": "str", **dict.fromkeys(_SELECTION, "int")})
    )
    if wrong is None and not (2 <= values["num_classes"] <= _MOST and values["engine"]["batch_size"] >= 1):
        wrong = f"impossible num_classes {values['num_classes']} or batch_size {values['engine']['batch_size']}"
    images, start, stop, skip = (values["data"].get(name) for name in _SELECTION)
    if wrong is None and not (0 <= start < stop <= images <= _MOST and skip >= 1):
        wrong = f"impossible selection {start} .. {stop} step {skip} of {images} images"
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
            if not re.fullmatch("0|[1-9][0-9]{0,8}", key) or not fits(votes, "int") or votes < 0:
                raise CorruptFile(path, number, f'"{name}" has {key!r}: {votes!r}, expected class: votes')
            counts[int(key)] = votes
        values[name] = counts
    return Certificate(**values)
