"""`state.pt`, from which a run goes on exactly, and the lock that keeps a second run out of its folder."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from ..files import atomic_path
from ..messages import first_line
from ..models.run_folder import CONFIG, METRICS, WEIGHTS

STATE = "state.pt"
FORMAT_VERSION = 1


@dataclass
class Position:
    """Where a run stands: `batch` loaded batches of `epoch` are done; sums over this epoch; finished epochs' lines."""

    epoch: int = 0
    batch: int = 0
    images: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


State = dict[str, Any]
"""Position (as JSON), state of the model and of the optimiser: tensors and plain values only."""


def make_state(position: Position, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """The tensors are the run's own, not copies."""
    return {
        "format_version": FORMAT_VERSION,
        "position": json.dumps(asdict(position)),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def all_finite(state: State) -> bool:
    """Whether neither weights nor momentum hold NaN or an infinity."""
    momentum = [value for slots in state["optimizer"]["state"].values() for value in slots.values()]
    tensors = [value for value in (*state["model"].values(), *momentum) if isinstance(value, torch.Tensor)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())


def write_state(folder: Path, state: State) -> None:
    """Whole or not at all; OSError where the disk is full."""
    with atomic_path(folder / STATE) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # its way of reporting a full disk
            raise OSError(errno.EIO, first_line(error)) from None


def read_state(folder: Path) -> State:
    """On the CPU. BadInput for a truncated or foreign file."""
    with _readable(folder):
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if state["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {state['format_version']}, expected {FORMAT_VERSION}")
        return state


def restore(
    folder: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, *, epochs: int, batches: int
) -> Position:
    """Put the state into model and optimiser; its position. BadInput if it does not fit them, or the run's length."""
    with _readable(folder):
        position = Position(**json.loads(state["position"]))
        if not (0 <= position.epoch <= epochs and 0 <= position.batch <= batches):
            raise ValueError(f"position {position.epoch}, {position.batch}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return position


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever torch's reader makes of it
        raise BadInput(
            f"{folder / STATE}: not a readable training state ({first_line(error)}); start afresh in another --out"
        ) from None


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """No other run writes here meanwhile (BadInput), and what a killed one left half-written is gone."""
    try:
        import fcntl
    except ImportError:  # no such lock on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(
                f"--out {folder}: another smx process trains into it; wait for it or choose another"
            ) from None
        for name in (STATE, WEIGHTS, CONFIG, METRICS):
            for left in folder.glob(f".{name}.*"):
                left.unlink()
        yield
    finally:
        os.close(handle)
