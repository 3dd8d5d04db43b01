"""What an engine is: something that turns one fixed-shape batch into votes, and says what it is.

A stage before this one knows nothing about votes; a stage after it nothing about runtimes.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

NO_VOTE = -1
"""The vote of a row whose logits are not all finite: it counts for no class, and so against every class."""


@dataclass(frozen=True)
class EngineInfo:
    """The identity of a loaded engine, as it goes into manifests."""

    name: str
    """As given to --engine."""
    version: str
    device: str
    """"cpu" or "cuda:0", with the device's product name where there is one."""
    precision: str
    batch_size: int
    """Rows of every batch: one static shape a run."""
    threads: int | None
    input_shape: tuple[int, int, int]
    """C, H, W."""
    num_classes: int
    artefact_sha256: str
    """Of the file that runs."""
    options: dict[str, Any] = field(default_factory=dict)
    """What else the runtime was told that may change its logits: arithmetic, graph capture, providers."""

    def record(self) -> dict[str, Any]:
        """The part that manifests hold under "engine"."""
        values = asdict(self)
        return {k: values[k] for k in ("name", "version", "device", "precision", "batch_size", "threads", "options")}


class Engine(Protocol):
    """One loaded artefact on one runtime and device."""

    info: EngineInfo

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """Scores [B, K] of float32 images [B, C, H, W] in [0, 1] plus noise. Any B the artefact allows."""
        ...


def usable_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def concurrent_calls(engine: Engine) -> int:
    """How many threads may, and should, call `logits` at a time: the engine's `workers`, or 1.

    On CPUs one call a core beats one call on all cores, whose threads wait for each other after every layer.
    """
    return int(getattr(engine, "workers", 1))


class DeviceEngine(Engine, Protocol):
    """An engine that reads and writes torch tensors where they are: noise, engine and argmax share a GPU."""

    device: torch.device

    def device_logits(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, K] of float32 [B, C, H, W] on `device`, enqueued on the current stream.

        The result may be overwritten by the next call: what reads it must be enqueued on the same stream.
        """
        ...


def on_device(engine: Engine) -> DeviceEngine | None:
    """The engine itself, if it works on a GPU's tensors."""
    return engine if hasattr(engine, "device_logits") else None  # type: ignore[return-value]


def logits_from_host(engine: DeviceEngine, x_BCHW: np.ndarray) -> np.ndarray:
    """What `logits` of a DeviceEngine does: the batch goes there and the scores come back."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(x_BCHW)).to(engine.device)
    result: np.ndarray = engine.device_logits(x).float().cpu().numpy()
    return result


def votes(logits_BK: np.ndarray) -> np.ndarray:
    """The class of each row, int64 [B]; ties go to the lowest index, rows with NaN or Inf to NO_VOTE."""
    vote_B = logits_BK.argmax(axis=1)
    # A sum is finite only if every term is; the exact look is needed where a finite row could overflow.
    doubtful = ~np.isfinite(logits_BK.sum(axis=1, dtype=np.float64))
    if doubtful.any():
        vote_B[~np.isfinite(logits_BK).all(axis=1)] = NO_VOTE
    return vote_B


def device_votes(logits_BK: torch.Tensor) -> torch.Tensor:
    """`votes`, where the logits are: int64 [B] on their device."""
    import torch

    valid_B = torch.isfinite(logits_BK).all(dim=1)
    return torch.where(valid_B, logits_BK.argmax(dim=1), NO_VOTE)  # argmax: the first of several maxima
