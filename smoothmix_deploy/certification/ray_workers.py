"""Workers as Ray actors, on one machine or a cluster. The thin part: see `driver`, `worker`.

Artefact and data must lie at the same paths on every node (a shared file system); a worker that finds others there is
refused. An actor takes as many cores as its engine has threads, and a GPU where the cluster has any.
"""

from __future__ import annotations

import os
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ..errors import Unavailable
from ..messages import first_line
from .driver import Event
from .queues import Inbox, Work
from .worker import Failure, WorkerSpec, failure, open_worker


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise Unavailable(f"--ray: ray is not installed ({first_line(error)}); install smoothmix-deploy[ray]") from None
    return ray


class RayFleet:
    """See `driver.Fleet`."""

    def __init__(self, address: str, workers: int, spec: WorkerSpec) -> None:
        """`address` auto: the cluster that this machine belongs to, or a local one made for this run."""
        ray = self._ray = _ray()
        self.names = [f"worker {i}" for i in range(workers)]
        self._spec = spec
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(
                    address=None if address == "auto" else address, log_to_driver=False, logging_level="ERROR",
                    configure_logging=False,
                )  # fmt: skip
            except Exception as error:  # Ray's errors are many
                found = (
                    "no cluster of this machine, and none could be started" if address == "auto" else "no cluster there"
                )
                raise Unavailable(f"--ray {address}: {found} ({first_line(error)})") from None
        gpus = spec.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        self._actor = ray.remote(Actor).options(num_cpus=spec.threads or 1, num_gpus=int(gpus), max_concurrency=2)
        self._actors: dict[str, Any] = {}
        self._waiting: dict[Any, str] = {}  # reference -> worker

    def start(self, name: str) -> None:
        """Also again, after its death."""
        self._actors[name] = self._actor.remote(self._spec)
        self._listen(name)

    def _listen(self, name: str) -> None:
        """One question is always out: what is new?"""
        self._waiting[self._actors[name].events.remote()] = name

    def send(self, name: str, item: Work) -> None:
        """What comes of it is among its events."""
        self._actors[name].put.remote(item)

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        """What is ready, once something is, or after `timeout` seconds."""
        wait, left = self._ray.wait, list(self._waiting)
        if not left or not wait(left, num_returns=1, timeout=timeout)[0]:
            return []
        ready, _ = wait(left, num_returns=len(left), timeout=0)
        found: list[tuple[str, Event]] = []
        for reference in ready:
            name = self._waiting.pop(reference, None)
            if name is None:  # of a worker that has just been found dead
                continue
            events = self._events(reference)
            if None in events:
                self.dismiss(name)
            else:
                self._listen(name)
            found += [(name, event) for event in events]
        return found

    def _events(self, reference: Any) -> list[Event]:
        try:
            events: list[Event] = self._ray.get(reference)
            return events
        except self._ray.exceptions.RayTaskError as error:
            return [Failure(1, first_line(error))]
        except self._ray.exceptions.RayError:  # the actor or its node died
            return [None]

    def dismiss(self, name: str) -> None:
        """End it, and forget what it was asked."""
        actor = self._actors.pop(name, None)
        if actor is not None:
            self._ray.kill(actor)
        self._waiting = {reference: worker for reference, worker in self._waiting.items() if worker != name}

    def close(self) -> None:
        """End all."""
        for name in list(self._actors):
            self.dismiss(name)
        if self._ours:
            self._ray.shutdown()


class Actor:
    """A worker in an actor: it opens and works in a thread; its two calls bring it work and take away what came of it."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._inbox: Inbox = SimpleQueue()
        self._outbox: SimpleQueue[Event] = SimpleQueue()

        def work() -> None:
            try:
                worker = open_worker(spec)
                self._outbox.put(worker.greeting)
                worker.sample(self._inbox, self._outbox.put)
            except Exception as error:
                self._outbox.put(failure(error))

        Thread(target=work, daemon=True).start()

    def put(self, item: Work) -> None:
        """More to do."""
        self._inbox.put(item)

    def events(self) -> list[Event]:
        """All that is new, as soon as something is."""
        events = [self._outbox.get()]
        while not self._outbox.empty():
            events.append(self._outbox.get())
        return events

    def process_id(self) -> int:
        """For whoever looks at it from outside."""
        return os.getpid()
