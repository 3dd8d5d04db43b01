"""The driver of a scaled-out run: starts workers, checks what they opened, keeps them busy, survives their deaths.

Decisions about work are a `Dispatcher`'s, where samples are handed out (rules that look once), or those of `Leases`,
where images are; a `Fleet` is how workers are reached (`local_workers`, `ray_workers`). Only
workers whose engine and data are those of the manifest are pooled: votes of another function prove nothing about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import length_hint
from typing import Any, Protocol

from ..errors import BadInput, CheckFailed, SmxError, Stopped, Unavailable
from .dispatcher import Dispatcher, ItemVotes, WorkItem
from .leases import Lease, Leases, Report
from .scheduler import Scheduler
from .settings import Note
from .worker import Failure, Greeting

Event = Greeting | ItemVotes | Report | Failure | None
"""What comes from a worker. None: it died."""

_DEATHS = 3
"""In a row, without a result in between: then a worker is given up."""
_WAIT = 1.0
_TELL_EVERY = 0.1


class Fleet(Protocol):
    """Workers by name, started one by one, perhaps again."""

    names: list[str]

    def start(self, name: str) -> None:
        """Begin to open its engine; a Greeting or Failure follows."""
        ...

    def send(self, name: str, item: WorkItem | Lease) -> None:
        """Queue an item; ItemVotes follow, or Reports. Never raises for a worker that died."""
        ...

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        """What came in: as soon as something has, else after `timeout` seconds."""
        ...

    def dismiss(self, name: str) -> None:
        """It is not wanted any more, if it is still there."""
        ...

    def close(self) -> None:
        """Nobody is."""
        ...


def identity(engine: dict[str, Any], artefact_sha256: str, data_digest: str) -> dict[str, Any]:
    """What must be equal among workers. `engine`: as in the manifest."""
    return {**{f"engine {k}": v for k, v in engine.items()}, "artefact": artefact_sha256, "data digest": data_digest}


class Team:
    """The workers of one run. Use as a context manager."""

    def __init__(
        self, fleet: Fleet, note: Note, expected: dict[str, Any] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`expected`: the `identity` that a resumed file states; None: that of the first worker that is ready."""
        self._fleet, self._note, self._expected, self._clock = fleet, note, expected, clock
        self._deaths = dict.fromkeys(fleet.names, 0)  # of those not given up
        self._hungry: dict[str, None] = {}  # ready, and can take an item; who asked longest ago first
        self._last = Failure(5, "no worker was started")
        self._dispatcher: Any = None  # Dispatcher or Leases
        self.first: Greeting | None = None

    def __enter__(self) -> Team:
        for name in self._fleet.names:
            self._fleet.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._fleet.close()

    def greeting(self) -> Greeting:
        """Of the first worker that is ready and what it should be. Raises what the last one said if there is none."""
        while self.first is None:
            self._take_events()
        return self.first

    def sample(self, scheduler: Scheduler, after_batch: Callable[[int], None], engine_time: object = None) -> None:
        """A `campaign.Sample` with all workers. `after_batch` is called a few times a second. Stopped if none is left."""
        batch_size = self.greeting().info.batch_size
        if scheduler.rule.next_look(0) == scheduler.rule.largest_n:
            self._dispatcher = Dispatcher(scheduler, batch_size)
        else:
            self._dispatcher = Leases(scheduler, batch_size, length_hint(scheduler.indices), len(self._deaths))
        samples, told = 0, self._clock()
        while True:
            self._feed(self._dispatcher)
            if self._dispatcher.idle or self._clock() - told > _TELL_EVERY:
                after_batch(samples)
                samples, told = 0, self._clock()
            if self._dispatcher.finished:
                return
            samples += self._take_events()

    def _feed(self, dispatcher: Dispatcher | Leases) -> None:
        """Enough for everybody, as far as there is work."""
        now = self._clock()
        while self._hungry:
            name = next(iter(self._hungry))
            del self._hungry[name]
            item = dispatcher.request(name, now)
            if item is not None:
                self._fleet.send(name, item)
            if not dispatcher.has_enough(name):
                self._hungry[name] = None
            if item is None:
                return

    def _take_events(self) -> int:
        """Wait for events; how many samples they brought."""
        samples = 0
        for name, event in self._fleet.events(_WAIT):
            if name not in self._deaths:
                continue
            if isinstance(event, ItemVotes | Report):
                samples += self._dispatcher.deliver(name, event, self._clock())
                self._deaths[name] = 0
                if not self._dispatcher.has_enough(name):
                    self._hungry[name] = None
            elif isinstance(event, Greeting):
                self._welcome(name, event)
            else:
                self._lose(name, event)
        return samples

    def _welcome(self, name: str, greeting: Greeting) -> None:
        found = identity(greeting.info.record(), greeting.info.artefact_sha256, greeting.data_digest)
        expected = self._expected = self._expected or found
        wrong = next((what for what in {**expected, **found} if expected.get(what) != found.get(what)), None)
        if wrong is not None:
            text = f"its {wrong} is {found.get(wrong)}, this run's is {expected.get(wrong)}"
            self._give_up(name, Failure(3, f"{name} on {greeting.host} is refused: {text}"))
            return
        for text in greeting.notes:
            self._note(f"{name}: {text}")
        self.first = self.first or greeting
        self._hungry[name] = None

    def _lose(self, name: str, failure: Failure | None) -> None:
        """A worker died (None) or said why it cannot go on. What it had is done by others, it is started again."""
        self._hungry.pop(name, None)
        if self._dispatcher is not None:
            self._dispatcher.lost(name)
        self._deaths[name] += 1
        if failure is not None and failure.exit_code != 5:
            self._give_up(name, Failure(failure.exit_code, f"{name}: {failure.text}"))
            return
        why = failure.text if failure is not None else "its process died"
        if self._deaths[name] > _DEATHS:
            self._give_up(name, Failure(5, f"{name} is given up after {_DEATHS + 1} deaths in a row: {why}"))
            return
        self._note(f"{name}: {why}; starting it again")
        self._fleet.dismiss(name)
        self._fleet.start(name)

    def _give_up(self, name: str, failure: Failure) -> None:
        del self._deaths[name]
        self._fleet.dismiss(name)
        self._last = failure
        if self._deaths:
            self._note(f"{failure.text}; the run goes on without it")
            return
        if self._dispatcher is not None and failure.exit_code == Stopped.exit_code:
            raise Stopped(f"{failure.text}; no worker is left: run the same command with --resume to go on")
        raise _error_of(failure)


def _error_of(failure: Failure) -> SmxError:
    kinds = (BadInput, CheckFailed, Unavailable, Stopped)
    kind = next((kind for kind in kinds if kind.exit_code == failure.exit_code), Stopped)
    return kind(failure.text)
