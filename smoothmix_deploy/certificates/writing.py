"""Writing certificate files: a whole, flushed line at a time, by one process at a time; the seal in one step."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO

from ..errors import BadInput, Stopped
from ..files import atomic_path
from .lines import Certificate, Manifest, Seal, text_of
from .reading import CertificateFile


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
            try:
                self._append(text_of(begin))
            except Stopped:
                self._close()  # and let go of the lock: nobody enters this context
                raise
        else:
            assert begin.seal is None, "nothing is added to a signed file"
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
        self._append(text_of(certificate))

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
            self._close()

    def _close(self) -> None:
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


def append_seal(content: CertificateFile, seal: Seal) -> None:
    """Put a file in its own place with `seal` as its last line, in one step. BadInput if it is not as it was read."""
    path = content.path.resolve()
    with open(path, "rb") as file:
        _lock(file, path)
        data = file.read()
        if hashlib.sha256(data).hexdigest() != content.sha256:
            raise BadInput(f"{content.path}: has changed while it was checked; run the command again")
        with atomic_path(path) as temporary:
            temporary.write_bytes(data + text_of(seal).encode())
