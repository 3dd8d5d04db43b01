"""Workers as Ray actors, on one machine or a cluster. The thin part: see `driver`, `worker`.

Artefact and data must lie at the same paths on every node (a shared file system); a worker that finds others there is
refused. An actor takes as many cores as its engine has threads, and a GPU where the cluster has any.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from threading import Thread
from typing import Any

from ..errors import Unavailable
from ..messages import first_line
from .dispatcher import PREFETCH, ItemVotes, WorkItem
from .driver import Event
from .worker import Failure, Greeting, WorkerSpec, WorkQueue, failure, open_worker


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
                raise Unavailable(f"--ray {address}: no cluster there ({first_line(error)})") from None
        gpus = spec.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        self._actor = ray.remote(Actor).options(
            num_cpus=spec.threads or 1, num_gpus=int(gpus), max_concurrency=PREFETCH + 1
        )
        self._actors: dict[str, Any] = {}
        self._waiting: dict[Any, str] = {}  # reference -> worker

    def start(self, name: str) -> None:
        """Also again, after its death."""
        actor = self._actors[name] = self._actor.remote(self._spec)
        self._waiting[actor.greet.remote()] = name

    def send(self, name: str, item: WorkItem) -> None:
        """Its votes become ready when it has done them."""
        self._waiting[self._actors[name].work.remote(item)] = name

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
            event = self._event(reference)
            if event is None:
                self.dismiss(name)
            found.append((name, event))
        return found

    def _event(self, reference: Any) -> Event:
        try:
            event: Greeting | ItemVotes | Failure = self._ray.get(reference)
            return event
        except self._ray.exceptions.RayTaskError as error:
            return Failure(1, first_line(error))
        except self._ray.exceptions.RayError:  # the actor or its node died
            return None

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
    """A worker in an actor: `greet` once, then `work`, several calls at a time."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._queue = WorkQueue(self._done)
        self._asked: dict[int, Future[ItemVotes | Failure]] = {}
        self._failed: Failure | None = None

    def greet(self) -> Greeting | Failure:
        """Open and test; then work begins."""
        try:
            worker = open_worker(self._spec)
        except Exception as error:
            return failure(error)

        def sample() -> None:
            try:
                worker.sample(self._queue)
            except Exception as error:
                self._failed = failure(error)
                for asked in list(self._asked.values()):
                    asked.set_result(self._failed)

        Thread(target=sample, daemon=True).start()
        return worker.greeting

    def work(self, item: WorkItem) -> ItemVotes | Failure:
        """The votes of one item."""
        asked = self._asked[item.number] = Future()
        if self._failed is not None:
            return self._failed
        self._queue.put(item)
        return asked.result()

    def process_id(self) -> int:
        """For whoever looks at it from outside."""
        return os.getpid()

    def _done(self, votes: ItemVotes) -> None:
        self._asked.pop(votes.number).set_result(votes)
