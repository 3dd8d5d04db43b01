"""`--tensorboard`: the lines of metrics.jsonl as TensorBoard scalars, in the run folder's `tensorboard/`.

TensorBoard is an extra; nothing here is needed to train, and nothing reads these files again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import Unavailable

FOLDER = "tensorboard"


class EventLog:
    """Writes a finished epoch at a time. Unavailable, before anything is trained, where TensorBoard is missing."""

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise Unavailable(
                "--tensorboard: TensorBoard is not installed; install smoothmix-deploy[tensorboard]"
            ) from None
        self._open, self._folder = SummaryWriter, run / FOLDER
        self._writer: Any = None

    def write(self, line: dict[str, Any]) -> None:
        """Every number of the epoch's line. After a resumption, what came later in the log is hidden."""
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=line["epoch"])
        for tag, value in scalars(line):
            self._writer.add_scalar(tag, value, line["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Release the file."""
        if self._writer is not None:
            self._writer.close()


def scalars(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(tag, value) of every number but the epoch: `loss`, `probe/certified`."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch":
            yield prefix + name, float(value)
