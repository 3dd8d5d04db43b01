"""One worker: opens the artefact and the data itself, tests the engine, then does what its inbox says (`queues`).

The same code whether a process (`local_workers`) or a Ray actor (`ray_workers`) carries it. The sampler runs without a
break from message to message. Knows nothing about files.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..artefacts import open_artefact
from ..data import ImageSet, load_data
from ..engines import Engine, EngineInfo
from ..errors import SmxError
from ..messages import first_line
from .dispatcher import ItemVotes
from .leases import Lease, Report
from .opening import open_tested
from .queues import Inbox, ItemQueue, LeaseQueue
from .sampler import run


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs to know. Paths must mean the same on its machine."""

    artefact: str
    engine: str | None
    batch_size: int | None
    device: str
    threads: int | None
    data: str
    data_root: str | None
    split: str
    indices: range
    sigma: float
    key: str
    noise: str
    may_halve: bool
    """The batch on lack of memory: no manifest states its size yet."""


@dataclass(frozen=True)
class Greeting:
    """What a worker opened: the driver compares it with the manifest."""

    host: str
    info: EngineInfo
    self_test: dict[str, Any]
    data_digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A worker that cannot go on, with the exit code that its error has."""

    exit_code: int
    text: str


@dataclass(frozen=True)
class OpenWorker:
    """An engine that passed its self-test, and the images."""

    spec: WorkerSpec
    engine: Engine
    images: ImageSet
    greeting: Greeting

    def sample(self, inbox: Inbox, deliver: Callable[[ItemVotes | Report], None]) -> None:
        """Work until a None. Stopped if the engine fails."""
        first = inbox.get()
        if first is None:
            return
        queue = LeaseQueue(first, inbox, deliver) if isinstance(first, Lease) else ItemQueue(first, inbox, deliver)
        run(
            self.engine, self.images, queue, sigma=self.spec.sigma, key=self.spec.key, noise=self.spec.noise,
            after_batch=lambda samples: None,
        )  # fmt: skip


def open_worker(spec: WorkerSpec) -> OpenWorker:
    """Load and test. Raises as `certify` does."""
    notes: list[str] = []
    artefact = open_artefact(spec.artefact)
    images = load_data(spec.data, root=spec.data_root, split=spec.split)
    engine, tested = open_tested(
        artefact, images, spec.indices, engine=spec.engine, batch_size=spec.batch_size, device=spec.device,
        threads=spec.threads, sigma=spec.sigma, key=spec.key, noise=spec.noise, may_halve=spec.may_halve,
        note=notes.append,
    )  # fmt: skip
    greeting = Greeting(socket.gethostname(), engine.info, tested.record(), images.digest(), tuple(notes))
    return OpenWorker(spec, engine, images, greeting)


def failure(error: Exception) -> Failure:
    """What to tell the driver."""
    if isinstance(error, SmxError):
        return Failure(error.exit_code, str(error))
    return Failure(1, f"unexpected {type(error).__name__}: {first_line(error)}")
