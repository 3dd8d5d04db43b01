"""The sums behind an epoch's metrics, kept on the device: adding does not wait for a GPU, reading does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NotFinite:
    """A loss that is not a number: what it was, and the number of the update since the last reading."""

    loss: float
    update: int


class Sums:
    """Of the loss, its parts and the number of right answers, over an epoch's images. Float64."""

    def __init__(self, start: dict[str, float], device: torch.device) -> None:
        self._names = list(start)
        self._device = device
        self._total = torch.tensor(list(start.values()), dtype=torch.float64, device=device)
        self._forget()

    def _forget(self) -> None:
        self._fine = torch.ones((), dtype=torch.bool, device=self._device)
        self._good = torch.zeros((), dtype=torch.int64, device=self._device)
        self._bad = torch.zeros((), dtype=torch.float64, device=self._device)

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """One update: sums over its images, float64 scalars on the device, with "loss" among them."""
        if not self._names:
            self._names = list(values)
            self._total = torch.zeros(len(values), dtype=torch.float64, device=self._device)
        self._total += torch.stack([values[name] for name in self._names])
        finite = torch.isfinite(values["loss"])
        self._bad = torch.where(self._fine & ~finite, values["loss"], self._bad)
        self._fine = self._fine & finite
        self._good += self._fine

    def read(self) -> tuple[dict[str, float], NotFinite | None]:
        """The sums, and the first loss since the last reading that is not finite. Waits for the device."""
        state = torch.cat([torch.stack([self._fine.double(), self._good.double(), self._bad]), self._total]).tolist()
        fine, good, bad, *total = state
        self._forget()
        return dict(zip(self._names, total, strict=True)), None if fine else NotFinite(bad, int(good))
