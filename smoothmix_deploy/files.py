"""Writing files whole or not at all, digests, and JSON without NaN.

Knows nothing about what the files mean; formats live with their owners (`certificates`, `models.run_folder`,
`exporting.manifest`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import BadInput
from .messages import first_line

_LARGEST_JSON = 64 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}.", suffix=path.suffix, dir=path.parent)
    temporary = Path(name)
    try:
        _lock(handle)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path`, which must be absent or an empty folder, on success,
    remove it on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent))
    handle = os.open(temporary, os.O_RDONLY)
    try:
        _lock(handle)
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.replace(path)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def is_temporary(path: Path, of: str = r".+") -> bool:
    """Whether this is what a killed process leaves of something it was writing. `of`: an expression for its name."""
    return re.fullmatch(rf"\.{of}\.\d+\.[a-z0-9_]{{8}}(\.\w+)?", path.name) is not None


def _lock(handle: int) -> bool:
    """Take the lock that says: the process that writes this is alive. False: another one has it."""
    try:
        import fcntl
    except ImportError:  # not on Windows: there process ids alone have to tell
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(path: Path) -> None:
    """Remove what killed processes have left of earlier versions of `path`: their ids and their locks are gone."""
    for left in path.parent.iterdir():
        if not is_temporary(left, re.escape(path.name)) or left.is_symlink():
            continue
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY)
            try:
                if _lock(handle) and not _alive(int(left.name[len(path.name) + 2 :].partition(".")[0])):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def check_writable(path: Path, option: str) -> None:
    """BadInput, before hours of work, if `path` cannot be a file: it is a folder, or lies below a file."""
    if path.is_dir():
        raise BadInput(f"{option} {path}: is a folder; name a file")
    parent = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if parent is not None and not parent.is_dir():
        raise BadInput(f"{option} {path}: {parent} is a file, not a folder")


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(encodable(text), encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Sequence[Path]) -> str:
    """Of one file its SHA-256; of several the SHA-256 of their digests in this order."""
    digests = [sha256_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def encodable(text: str) -> str:
    """`text` with what is no Unicode spelled out: file names may be any bytes, UTF-8 files may not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {encodable(str(k)): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return encodable(value) if isinstance(value, str) else value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of `value`; numbers that do not exist (NaN, infinities) become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON."""
    write_text(path, to_json(value, indent=2) + "\n")


def parse_json(text: str, **hooks: Any) -> Any:
    """`json.loads` of what others wrote. ValueError for all that it cannot read, and for text that is no Unicode."""
    try:
        value = json.loads(text, **hooks)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`; BadInput names `what` it should have been."""
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: not a file (expected {what})")
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise BadInput(f"{path}: {path.stat().st_size >> 20} MB, more than {what} can have")
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file (expected {what})") from None
    except BadInput:
        raise
    except ValueError as error:  # no UTF-8, no JSON, numbers of more digits than Python reads
        raise BadInput(f"{path}: not valid JSON, so not {what} ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: expected a JSON object ({what}), found {type(value).__name__}")
    return value
