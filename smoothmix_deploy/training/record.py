"""What surrounds a run: probe and TensorBoard after each epoch; `training.png` and the model card at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import Stopped
from ..models.build import BaseClassifier
from ..models.card import title, write_card
from ..models.run_folder import CARD, PLOT, read_config, read_metrics
from .plot import write_training_plot
from .probe import Probe
from .tensorboard import EventLog


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
