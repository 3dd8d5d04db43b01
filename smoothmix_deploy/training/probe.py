"""`--probe`: how robust is the smoothed classifier of the network under training? Certified accuracy at one radius.

The model at hand goes through the certification machinery as it is (`radius` rule, float noise) on a few fixed test
images, with the same noise each time, so that a curve over epochs shows the network and not the draw. It writes no
certificates and changes nothing: noise is addressed by a key of its own, the model stays in eval mode without gradients.
The one place where training looks ahead to certification. Knows nothing about files.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..certification.sampler import run
from ..certification.scheduler import ImageJob, Scheduler
from ..certification.settings import USUAL_ALPHA
from ..data import ImageSet, select
from ..engines import EngineInfo
from ..engines.base import logits_from_host
from ..errors import BadInput
from ..models.build import BaseClassifier
from ..rules import make_rule
from ..statistics.bounds import largest_radius

N0, N = 100, 1_000
"""Selection samples, and the most estimation samples an image: cheap, and at worst a little pessimistic."""


@dataclass(frozen=True)
class ProbeResult:
    """What joins the epoch's line of metrics under "probe"."""

    certified: float
    """Share of the images answered correctly and certified at `radius`."""
    radius: float
    """In [0, 1] pixel units."""
    images: int
    n: int
    alpha: float
    """Per image."""
    samples: int
    seconds: float


class Probe:
    """Called after an epoch with the model in eval mode and the epoch's metrics; returns what to add to them."""

    def __init__(
        self, images: ImageSet | None, count: int, *, every: int, radius: float | None, sigma: float, epochs: int,
        batch_size: int, num_classes: int, seed: int, device: torch.device,
    ) -> None:  # fmt: skip
        """`images`: the test set, of which `count` evenly spaced ones are asked. BadInput for what cannot be."""
        radius = sigma if radius is None else radius
        if images is None:
            raise BadInput(f"--probe {count}: the data has no test images; leave it out")
        if not 1 <= count <= len(images):
            raise BadInput(f"--probe {count}: must lie in 1 .. {len(images)}, the number of test images")
        if every < 1:
            raise BadInput(f"--probe-every {every}: must be at least 1")
        try:
            self._rule = make_rule("radius", sigma=sigma, n=N, alpha=USUAL_ALPHA, radius=radius)
        except BadInput:
            most = largest_radius(N, USUAL_ALPHA, sigma)
            raise BadInput(
                f"--probe-radius {radius:g}: must be at least 0 and well below {most:.3f}, the most that {N} samples "
                f"can certify at sigma {sigma:g}"
            ) from None
        skip = len(images) // count
        self._images = images.subset(select(len(images), 0, skip * count, skip))
        self._every, self._epochs = every, epochs
        self._radius, self._sigma = radius, sigma
        # Not the key of `smx certify --seed`: whoever chooses a network by its probe certifies it with other noise.
        self._key = hashlib.sha256(f"probe {seed}".encode()).hexdigest()[:32]
        self._rows, self._num_classes, self._device = batch_size, num_classes, device

    def __call__(self, model: BaseClassifier, line: dict[str, Any]) -> dict[str, Any]:
        """{"probe": ProbeResult}; {} in the epochs between."""
        epoch = line["epoch"] + 1
        return {} if epoch % self._every and epoch != self._epochs else {"probe": asdict(self.measure(model))}

    def measure(self, model: BaseClassifier) -> ProbeResult:
        """The certified accuracy of `model`, which must be in eval mode."""
        begin, right, samples = time.monotonic(), 0, 0
        scheduler = Scheduler(range(len(self._images)), self._rule, N0, self._num_classes)

        def count(job: ImageJob) -> None:
            nonlocal right, samples
            assert job.verdict is not None
            right += job.verdict.prediction == self._images.labels[job.index]
            samples += job.selection.votes.drawn + job.estimation.votes.drawn

        def after_batch(_: int) -> None:
            scheduler.release(count)

        run(
            LiveModel(model, self._images.shape, self._num_classes, self._rows, self._device), self._images, scheduler,
            sigma=self._sigma, key=self._key, after_batch=after_batch, compiled=False,
        )  # fmt: skip
        scheduler.release(count)
        return ProbeResult(
            certified=int(right) / len(self._images), radius=self._radius, images=len(self._images), n=N,
            alpha=USUAL_ALPHA, samples=samples, seconds=round(time.monotonic() - begin, 3),
        )  # fmt: skip


class LiveModel:
    """An engine round a model in memory, left as it is: mode, device, memory format and the precision of its GPU.

    `no_grad` and not `inference_mode`: a network may keep a tensor of its forward pass, and is trained on afterwards.
    """

    def __init__(
        self, model: BaseClassifier, shape: tuple[int, int, int], num_classes: int, rows: int, device: torch.device
    ) -> None:
        self._model, self.device = model, device
        self.info = EngineInfo(
            name="torch", version=str(torch.__version__), device=str(device), precision="fp32", batch_size=rows,
            threads=None, input_shape=shape, num_classes=num_classes, artefact_sha256="",
        )  # fmt: skip

    def device_logits(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """See `DeviceEngine`."""
        with torch.no_grad():
            return self._model(x_BCHW).float()

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]."""
        return logits_from_host(self, x_BCHW)
