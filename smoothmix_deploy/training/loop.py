"""The training loop: optimiser, schedule, metrics and state, the same for every method.

Knows nothing about recipes' names or the command line; a method is one pure function (see `steps`).
"""

from __future__ import annotations

import errno
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ..data import ImageSet
from ..errors import BadInput, CheckFailed, Stopped
from ..files import atomic_path, to_json, write_text
from ..messages import first_line
from ..models.build import BaseClassifier
from ..models.run_folder import METRICS, RunConfig, save_weights, write_config
from ..progress import Progress
from .batches import BatchSource, keyed_generator
from .methods import step_function
from .recipes import HyperParameters
from .steps import Draws

STATE = "state.pt"
_SAVE_EVERY_SECONDS = 120.0


def learning_rate(hp: HyperParameters, epoch: int, fraction: float) -> float:
    """At `fraction` in [0, 1) of `epoch`. step: whole epochs; cosine and one-cycle (30 % linear rise): every step."""
    if hp.schedule == "step":
        return hp.lr * hp.lr_gamma ** (epoch // hp.lr_step)
    done = (epoch + fraction) / hp.epochs
    if hp.schedule == "cosine":
        return hp.lr * 0.5 * (1 + math.cos(math.pi * done))
    rise = 0.3
    if done < rise:
        return hp.lr * (0.1 + 0.9 * done / rise)
    return hp.lr * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise))))


class StopRequests:
    """Turns the first Ctrl-C or SIGTERM into a request that is honoured at a safe place; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._before[number])


@dataclass
class Position:
    """Where a run stands: `batch` loaded batches of `epoch` are done; sums over this epoch; finished epochs' lines."""

    epoch: int = 0
    batch: int = 0
    images: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


AfterEpoch = Callable[[BaseClassifier, dict[str, Any]], dict[str, Any]]
"""(model in eval mode, the epoch's line of metrics.jsonl) -> what to add to that line. May write files of its own."""


def nothing_more(model: BaseClassifier, line: dict[str, Any]) -> dict[str, Any]:
    """The default of `Trainer.after_epoch`."""
    return {}


@dataclass
class Trainer:
    """One run into one folder."""

    folder: Path
    config: RunConfig
    model: BaseClassifier
    hp: HyperParameters
    images: ImageSet
    augment: str
    evaluation: ImageSet | None
    seed: int
    device: torch.device
    progress: Progress
    after_epoch: AfterEpoch = nothing_more

    def __post_init__(self) -> None:
        hp = self.hp
        self._step = step_function(hp.method)
        self._source = BatchSource(self.images, hp.batch_size, self.augment, self.seed, self.device)
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=hp.lr, momentum=hp.momentum, weight_decay=hp.weight_decay
        )
        self._position = Position()
        self._saved_at = time.monotonic()

    def run(self, *, resume: bool) -> dict[str, Any]:
        """Train to the last epoch; the metrics of that epoch. Ctrl-C stops after the batch at hand."""
        if resume and (self.folder / STATE).exists():
            self._load_state()
        hint = "run the same command with --resume to go on"
        try:
            self._write_results()  # a run killed between its files has them all again
            with StopRequests() as stop:
                while self._position.epoch < self.hp.epochs and not stop.requested:
                    self._epoch(stop)
                if stop.requested:
                    self._save_state()
                    raise Stopped(f"stopped in epoch {self._position.epoch}; {hint}")
        except KeyboardInterrupt:  # in the middle of a step: the last saved state is the last consistent one
            raise Stopped(f"stopped in epoch {self._position.epoch}; {hint}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise Stopped(
                f"{self.folder}: cannot write ({reason}); the last saved state is kept: make room, then {hint}"
            ) from None
        return self._position.history[-1]

    def _epoch(self, stop: StopRequests) -> None:
        position = self._position
        self.model.train()
        clock = time.monotonic()
        for x, y in self._source.epoch(position.epoch, first=position.batch):
            for mini_batch, (x_mini, y_mini) in enumerate(self._mini_batches(x, y)):
                self._update(x_mini, y_mini, mini_batch)
            position.batch += 1
            now = time.monotonic()
            position.seconds += now - clock
            clock = now
            self._report()
            if stop.requested:
                return
            if now - self._saved_at > _SAVE_EVERY_SECONDS:
                self._save_state()
        self._finish_epoch()

    def _mini_batches(self, x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """m mini-batches of len(x) // m images (a remainder is left out, as in the authors' code)."""
        size = len(x) // self.hp.m
        for i in range(self.hp.m if size else 0):
            yield x[i * size : (i + 1) * size], y[i * size : (i + 1) * size]

    def _update(self, x: torch.Tensor, y: torch.Tensor, mini_batch: int) -> None:
        hp, position = self.hp, self._position
        fraction = (position.batch + mini_batch / hp.m) / len(self._source)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(hp, position.epoch, fraction)
        generator = keyed_generator(self.device, self.seed, position.epoch, position.batch, mini_batch)
        noise = torch.randn((hp.m, *x.shape), generator=generator, device=self.device).mul_(hp.sigma)
        lam = torch.rand(len(x), generator=generator, device=self.device) / 2
        warmup = min(1.0, (position.epoch + 1) / hp.warmup_epochs)
        loss = self._step(self.model, x, y, Draws(noise, lam), hp, warmup)
        value = float(loss.total.detach())
        if not math.isfinite(value):
            raise CheckFailed(
                f"the loss is {value} in epoch {position.epoch}, batch {position.batch}: training diverged; the last "
                f"good state is in {self.folder}: lower --lr or --eta, or look for bad images"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        self._optimizer.step()
        parts = {"loss": value, **{name: float(part) for name, part in loss.parts.items()}}
        for name, part in parts.items():
            position.sums[name] = position.sums.get(name, 0.0) + part * len(x)
        position.sums["correct"] = position.sums.get("correct", 0.0) + int(loss.correct)
        position.images += len(x)

    def _finish_epoch(self) -> None:
        position = self._position
        count = max(position.images, 1)
        means = {name: total / count for name, total in position.sums.items()}
        line = {
            "epoch": position.epoch,
            "lr": self._optimizer.param_groups[0]["lr"],
            "train_accuracy": means.pop("correct", math.nan),
            **means,
            "noisy_accuracy": self._noisy_accuracy(),
            "seconds": round(position.seconds, 3),
            "images_per_second": round(position.images / max(position.seconds, 1e-9), 1),
        }
        self.model.eval()
        line |= self.after_epoch(self.model, dict(line))
        self._position = Position(epoch=position.epoch + 1, history=[*position.history, line])
        self._save_state()
        self._write_results()

    def _write_results(self) -> None:
        """Weights, configuration and metrics of the finished epochs, as the state has them."""
        if self._position.epoch and not self._position.batch:  # in the middle of an epoch the weights are nobody's yet
            save_weights(self.folder, self.model)
            self.config = replace(self.config, epochs_completed=self._position.epoch)
            write_config(self.folder, self.config)
        write_text(self.folder / METRICS, "".join(to_json(line) + "\n" for line in self._position.history))

    @torch.no_grad()
    def _noisy_accuracy(self) -> float | None:
        """Share of the evaluation images that the base classifier gets right under one noise draw each."""
        if self.evaluation is None:
            return None
        self.model.eval()
        source = BatchSource(self.evaluation, 500, "none", self.seed, self.device)
        generator = keyed_generator(self.device, self.seed, self._position.epoch, -1)
        correct = 0
        for x, y in source.epoch(0):
            noise = torch.randn(x.shape, generator=generator, device=self.device) * self.hp.sigma
            correct += int((self.model(x + noise).argmax(dim=1) == y).sum())
        return correct / len(self.evaluation)

    def _report(self) -> None:
        position, total = self._position, self.hp.epochs * len(self._source)
        loss = position.sums.get("loss", math.nan) / max(position.images, 1)
        rate = position.images / max(position.seconds, 1e-9)
        done = position.epoch * len(self._source) + position.batch
        details = f"epoch {position.epoch + 1}/{self.hp.epochs}  loss {loss:.3f}  {rate:,.0f} images/s"
        self.progress("training", done, total, details)

    def _save_state(self) -> None:
        state = {
            "format_version": 1,
            "position": json.dumps(asdict(self._position)),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        with atomic_path(self.folder / STATE) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # its way of reporting a full disk
                raise OSError(errno.EIO, first_line(error)) from None
        self._saved_at = time.monotonic()

    def _load_state(self) -> None:
        path = self.folder / STATE
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self._position = Position(**json.loads(state["position"]))
            if not (0 <= self._position.epoch <= self.hp.epochs and 0 <= self._position.batch <= len(self._source)):
                raise ValueError(f"position {self._position.epoch}, {self._position.batch}")
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # a truncated or foreign file, whatever torch's reader makes of it
            reason = first_line(error)
            raise BadInput(f"{path}: not a readable training state ({reason}); start afresh in another --out") from None
