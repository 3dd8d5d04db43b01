"""What surrounds a run: probe and TensorBoard after each epoch; `training.png` and the model card at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import ImageSet
from ..errors import Stopped
from ..models.build import BaseClassifier
from ..models.card import title, write_card
from ..models.run_folder import CARD, PLOT, RunConfig, read_config, read_metrics
from .plot import write_training_plot
from .probe import Probe
from .recipes import HyperParameters
from .tensorboard import EventLog


@dataclass(frozen=True)
class Watch:
    """What the user wants to see: `probe` images (0: none) every `probe_every` epochs; TensorBoard."""

    probe: int
    probe_every: int
    probe_radius: float | None
    tensorboard: bool


def make_record(
    out: Path, watch: Watch, test: ImageSet | None, config: RunConfig, hp: HyperParameters, rows: int,
    device: torch.device,
) -> RunRecord:  # fmt: skip
    """BadInput or Unavailable for what cannot be. `rows`: how many noisy images the device surely takes at once."""
    asked = Probe(
        test, watch.probe, every=watch.probe_every, radius=watch.probe_radius, sigma=hp.sigma, epochs=hp.epochs,
        batch_size=rows, num_classes=config.num_classes, seed=config.seed or 0, device=device,
    ) if watch.probe else None  # fmt: skip
    return RunRecord(out, probe=asked, tensorboard=watch.tensorboard)


class RunRecord:
    """`after_epoch` goes to the Trainer; `finish` is called when it is done."""

    def __init__(self, out: Path, *, probe: Probe | None, tensorboard: bool) -> None:
        """Unavailable: TensorBoard is asked for and missing."""
        self._out, self._probe = out, probe
        self._events = EventLog(out) if tensorboard else None

    def after_epoch(self, model: BaseClassifier, line: dict[str, Any]) -> dict[str, Any]:
        """What the probe adds to the epoch's line."""
        added = self._probe(model, line) if self._probe else {}
        if self._events:
            self._events.write({**line, **added})
        return added

    def finish(self, model: BaseClassifier) -> None:
        """Plot and card of the run folder as it is now. Stopped if they cannot be written: the run itself is whole."""
        if self._events:
            self._events.close()
        try:
            write_training_plot(read_metrics(self._out), self._out / PLOT, title(read_config(self._out)))
            write_card(self._out, self._out / CARD, parameters=sum(p.numel() for p in model.parameters()))
        except OSError as error:
            raise Stopped(
                f"{self._out}: trained, but {CARD} and {PLOT} cannot be written ({error.strerror or error}): make room, "
                "then run the same command with --resume"
            ) from None
