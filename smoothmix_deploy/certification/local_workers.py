"""Workers as processes of this machine, each a Python of its own behind a pipe. The thin part: see `driver`, `worker`.

A worker whose driver is gone ends at once; on a machine with GPUs worker i sees device i alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ..errors import Unavailable
from .driver import Event
from .queues import Inbox, Work
from .worker import WorkerSpec, failure, open_worker

_MAIN = "from smoothmix_deploy.certification.local_workers import main; main()"


class LocalFleet:
    """See `driver.Fleet`."""

    def __init__(self, workers: int, spec: WorkerSpec) -> None:
        if os.name != "posix":
            raise Unavailable("--workers: needs a POSIX system; use --shard i/k and smx merge")
        self.names = [f"worker {i}" for i in range(workers)]
        self._spec = spec
        self._gpus = visible_gpus() if spec.device != "cpu" else []
        self._running: dict[str, tuple[subprocess.Popen[bytes], Connection]] = {}

    def start(self, name: str) -> None:
        """Also again, after its death."""
        here, there = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[self.names.index(name) % len(self._gpus)]
        process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(there.fileno())], pass_fds=[there.fileno()], env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        there.close()
        self._running[name] = process, here
        self._try(here.send, self._spec)

    def send(self, name: str, item: Work) -> None:
        """To a worker that may be dead: `events` will say so."""
        self._try(self._running[name][1].send, item)

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        """What came in, once something has, or after `timeout` seconds."""
        names = {connection: name for name, (_, connection) in self._running.items()}
        found: list[tuple[str, Event]] = []
        for ready in wait(list(names), timeout):
            assert isinstance(ready, Connection)
            try:
                found.append((names[ready], ready.recv()))
            except (EOFError, OSError):
                self.dismiss(names[ready])
                found.append((names[ready], None))
        return found

    def dismiss(self, name: str) -> None:
        """End it, and forget it."""
        if name not in self._running:
            return
        process, connection = self._running.pop(name)
        connection.close()
        process.kill()
        process.wait()

    def close(self) -> None:
        """End all."""
        for name in list(self._running):
            self.dismiss(name)

    def process_ids(self) -> dict[str, int]:
        """Of those that run."""
        return {name: process.pid for name, (process, _) in self._running.items()}

    @staticmethod
    def _try(send: Any, message: object) -> None:
        with contextlib.suppress(OSError):  # it died; its end of the pipe tells `events`
            send(message)


def visible_gpus() -> Sequence[str]:
    """As CUDA_VISIBLE_DEVICES names them, without making a CUDA context here."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [name.strip() for name in listed.split(",") if name.strip()] if listed is not None else None
    count = torch.cuda.device_count()
    return (named if named is not None else [str(i) for i in range(count)])[:count]


def main() -> None:
    """A worker's process: `python -c MAIN FILE_DESCRIPTOR`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; it ends its workers
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    inbox: Inbox = SimpleQueue()
    spec = connection.recv()

    def receive() -> None:
        try:
            while True:
                inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    try:
        worker = open_worker(spec)
        connection.send(worker.greeting)
        Thread(target=receive, daemon=True).start()
        worker.sample(inbox, connection.send)
    except Exception as error:
        connection.send(failure(error))
