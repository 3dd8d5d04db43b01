"""The training loop: optimiser, steps, metrics and when to save, the same for every method and number of processes.

Knows nothing about recipes' names or the command line; a method is one pure function (see `steps`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..data import ImageSet
from ..errors import BadInput, CheckFailed, Stopped
from ..files import to_json, write_text
from ..models.build import BaseClassifier
from ..models.run_folder import METRICS, RunConfig, save_weights, write_config
from ..progress import Progress
from .acceleration import Accelerated
from .batches import Batch, BatchSource, keyed_generator
from .distributed import Processes, local_statistics
from .division import Division
from .methods import step_function
from .recipes import HyperParameters
from .schedule import learning_rate
from .state import STATE, Position, State, all_finite, make_state, read_state, restore, write_state
from .steps import Draws
from .stopping import StopRequests
from .sums import Sums

SAVE_EVERY_SECONDS = 120.0
_CHECK_EVERY = {"cpu": 1}
"""Updates between looks at the loss, by device; elsewhere 50, because a look waits for the device."""
_ECHO_SECONDS = 3.0
"""Under torchrun, within which a second signal is the first one's echo."""

AfterEpoch = Callable[[BaseClassifier, dict[str, Any]], dict[str, Any]]
"""(model in eval mode, the epoch's line of metrics.jsonl) -> what to add to that line. May write files of its own."""


def nothing_more(model: BaseClassifier, line: dict[str, Any]) -> dict[str, Any]:
    """The default of `Trainer.after_epoch`."""
    return {}


@dataclass
class Trainer:
    """One run into one folder. With several processes each has its own, and process 0's writes the files."""

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
    processes: Processes = field(default_factory=Processes)
    accumulate: int = 1
    save_every: float = SAVE_EVERY_SECONDS
    decoders: int = 4

    def __post_init__(self) -> None:
        hp = self.hp
        self._step = step_function(hp.method)
        self._network = Accelerated(self.model, precision=hp.precision, compile=hp.compile)
        self._division = Division(self.processes.rank, self.processes.world_size, self.accumulate)
        self._source = BatchSource(
            self.images, hp.batch_size, self.augment, self.seed, self.device,
            m=hp.steps_a_batch, division=self._division, decoders=self.decoders,
        )  # fmt: skip
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=hp.lr, momentum=hp.momentum, weight_decay=hp.weight_decay
        )
        self._local_statistics = local_statistics(self.model)
        self._start_from(Position())
        self._saved_at = time.monotonic()

    def _start_from(self, position: Position) -> None:
        self._position = position
        self._sums = Sums(position.sums, self.device)
        self._mean_loss = math.nan
        self._unchecked: list[
            tuple[int, int]
        ] = []  # (batch, mini-batch) of the updates since the last look at the loss

    def run(self, *, resume: bool) -> dict[str, Any]:
        """Train to the last epoch; the metrics of that epoch. Ctrl-C in any process stops all after the batch at hand."""
        self._start(resume)
        hint = "run the same command with --resume to go on"
        echo = _ECHO_SECONDS if self.processes.world_size > 1 else 0.0
        try:
            self.processes.lead(self._write_results)  # a run killed between its files has them all again
            with StopRequests(echo) as stop:
                while self._position.epoch < self.hp.epochs:
                    if self._stopped_in_epoch(stop):
                        raise Stopped(f"stopped in epoch {self._position.epoch + 1} of {self.hp.epochs}; {hint}")
        except KeyboardInterrupt:  # in the middle of a step: the last saved state is the last consistent one
            raise Stopped(f"stopped in epoch {self._position.epoch + 1} of {self.hp.epochs}; {hint}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise Stopped(
                f"{self.folder}: cannot write ({reason}); the last saved state is kept: make room, then {hint}"
            ) from None
        return self._position.history[-1]

    def _start(self, resume: bool) -> None:
        """From the stored state, if there is one; all processes from what process 0 has."""
        stored = self.processes.lead(lambda: resume and (self.folder / STATE).exists())
        if not stored and self.processes.world_size == 1:
            return
        state = self.processes.lead(lambda: read_state(self.folder) if stored else self._initial_state())
        epochs, batches = self.hp.epochs, len(self._source)
        self._start_from(restore(self.folder, state, self.model, self._optimizer, epochs=epochs, batches=batches))

    def _initial_state(self) -> State:
        """On the CPU: a tensor that is sent to another process comes up on the device that it was on."""
        state = make_state(self._position, self.model, self._optimizer)
        return state | {"model": {name: tensor.cpu() for name, tensor in state["model"].items()}}

    def _stopped_in_epoch(self, stop: StopRequests) -> bool:
        """Train the rest of the epoch at hand; whether somebody wanted to stop before its end."""
        position = self._position
        self.model.train()
        clock = time.monotonic()
        batches = self._source.epoch(position.epoch, first=position.batch)
        while not self._must_stop(stop):
            batch = self._next(batches)
            if batch is None:
                self._check()  # waits for the device, which belongs to the epoch's time
                position.seconds += time.monotonic() - clock
                self._finish_epoch()
                return False
            for number in range(self.hp.steps_a_batch if batch.size else 0):
                self._update(batch, number)
            position.batch += 1
            now = time.monotonic()
            position.seconds += now - clock
            clock = now
            self._report()
        return True

    def _must_stop(self, stop: StopRequests) -> bool:
        """Between batches, where a run can go on from: save if it is time, or somebody wants to stop."""
        due = self.processes.leads and time.monotonic() - self._saved_at >= self.save_every
        wanted, due = self.processes.any(stop.requested, due)
        if wanted or due:
            self._save()
        return wanted

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch, None at the epoch's end. What was trained is saved before a bad image ends the run."""
        try:
            return self.processes.together(lambda: next(batches, None))
        except BadInput:
            self._save()
            raise

    def _update(self, batch: Batch, number: int) -> None:
        """One optimiser step on mini-batch `number` of a loaded batch."""
        hp, position = self.hp, self._position
        fraction = (position.batch + number / hp.steps_a_batch) / len(self._source)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(hp, position.epoch, fraction)
        self._optimizer.zero_grad(set_to_none=True)
        sums = self._backward(batch, number)
        self._add_up_over_processes(sums)
        self._optimizer.step()
        self._sums.add(sums)
        position.images += batch.size
        self._unchecked.append((position.batch, number))
        if len(self._unchecked) >= _CHECK_EVERY.get(self.device.type, 50):
            self._check()

    def _backward(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        """Gradients of this process's part of the mini-batch's loss; sums of the metrics over its images, float64.

        Noise is drawn for the whole mini-batch, on every process: draws depend on (seed, epoch, step, row) alone.
        """
        hp, position, size = self.hp, self._position, batch.size
        own = len(batch) // hp.steps_a_batch
        x_BCHW, y_B = (whole[number * own : (number + 1) * own] for whole in (batch.x_BCHW, batch.y_B))
        generator = keyed_generator(self.device, self.seed, position.epoch, position.batch, number)
        shape = (hp.m, size, *x_BCHW.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.device).mul_(hp.sigma)
        lam = torch.rand(size, generator=generator, device=self.device) / 2
        parts = self._division.rows(size)
        sums: dict[str, torch.Tensor] = {}
        for rows in parts:
            here = slice(rows.start - parts[0].start, rows.stop - parts[0].start)
            x, y = x_BCHW[here], y_B[here]
            loss = self._step(self._network, x, y, Draws(noise[:, rows], lam[rows]), hp, hp.warmup(position.epoch))
            weight = self._division.weight(rows, size)
            (loss.total * weight).backward()
            images = weight * size  # len(x), unless every process computes all of them
            for name, mean in {"loss": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0) + mean.detach().double() * images
            sums["correct"] = sums.get("correct", 0) + loss.correct.double() * (images / len(x))
        return sums

    def _add_up_over_processes(self, sums: dict[str, torch.Tensor]) -> None:
        """Gradients, metrics, and the mean of running statistics that would differ otherwise, in one message."""
        if self.processes.world_size == 1:
            return
        for buffer in self._local_statistics:
            buffer /= self.processes.world_size
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.processes.add_up([*gradients, *self._local_statistics, *sums.values()])

    def _check(self) -> None:
        """Look at the sums of the loss; CheckFailed names the first update whose loss is not finite."""
        position = self._position
        position.sums, problem = self._sums.read()
        self._mean_loss = position.sums.get("loss", math.nan) / max(position.images, 1)
        updates, self._unchecked = self._unchecked, []
        if problem is not None:
            batch, number = updates[problem.update]
            self._diverged(f"the loss is {problem.loss} in epoch {position.epoch}, batch {batch}, step {number}")

    def _diverged(self, what: str) -> None:
        kept = (
            f"the last good state is in {self.folder}" if (self.folder / STATE).exists() else "no state was saved yet"
        )
        raise CheckFailed(f"{what}: training diverged; {kept}: lower --lr or --eta, or look for bad images")

    def _finish_epoch(self) -> None:
        line = self.processes.lead(self._epoch_line)
        self._start_from(Position(epoch=self._position.epoch + 1, history=[*self._position.history, line]))
        self._save()
        self.processes.lead(self._write_results)

    def _epoch_line(self) -> dict[str, Any]:
        """The line of metrics.jsonl of the epoch that was just trained."""
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
            "processes": self.processes.world_size,
        }
        self.model.eval()
        return line | self.after_epoch(self.model, dict(line))

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
        for batch in source.epoch(0):
            noise = torch.randn(batch.x_BCHW.shape, generator=generator, device=self.device) * self.hp.sigma
            correct += int((self._network(batch.x_BCHW + noise).argmax(dim=1) == batch.y_B).sum())
        return correct / len(self.evaluation)

    def _report(self) -> None:
        position, total = self._position, self.hp.epochs * len(self._source)
        rate = position.images / max(position.seconds, 1e-9)
        done = position.epoch * len(self._source) + position.batch
        details = f"epoch {position.epoch + 1}/{self.hp.epochs}  loss {self._mean_loss:.3f}  {rate:,.0f} images/s"
        self.progress("training", done, total, details)

    def _save(self) -> None:
        """Never a state that is not finite: the one before it stays."""
        self._check()
        self.processes.lead(self._write_state)
        self._saved_at = time.monotonic()

    def _write_state(self) -> None:
        state = make_state(self._position, self.model, self._optimizer)
        if not all_finite(state):
            self._diverged(f"weights are not finite after epoch {self._position.epoch}, batch {self._position.batch}")
        write_state(self.folder, state)
