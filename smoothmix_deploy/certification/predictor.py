"""A smoothed classifier that is kept open and asked image by image: for services, where `smx predict` is for people.

The artefact is loaded and the engine tested once. An answer takes the batches that its rule needs, and rows that would
stay empty hold samples drawn ahead, so most answers of `rule="radius"` come after two or three small batches. Every
question has noise of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..artefacts import open_artefact
from ..data import InMemorySet
from ..engines import open_engine, votes
from ..errors import BadInput
from ..noise.gaussian import key_from_seed, random_key
from ..rules import Verdict, parameters_from_options
from .sampler import BatchFiller
from .scheduler import ImageJob, Scheduler
from .self_test import self_test
from .settings import USUAL_ALPHA, Note, make_checked_rule, noise_parameters, resolve_sigma

BATCH_SIZE = 64


class Predictor:
    """Call it with an image; it answers with a `Verdict`. Not for several threads at once."""

    def __init__(
        self,
        artefact: Path | str,
        *,
        engine: str | None = None,
        sigma: float | None = None,
        n: int = 10_000,
        n0: int = 100,
        alpha: float = USUAL_ALPHA,
        rule: str = "fixed",
        radius: float | None = None,
        grid: float | None = None,
        tolerance: float | None = None,
        noise: str = "gaussian",
        batch_size: int | None = BATCH_SIZE,
        device: str = "auto",
        threads: int | None = None,
        seed: int | None = None,
        note: Note = lambda text: None,
    ) -> None:
        """As `predict`. `batch_size` None: the engine's own, which suits throughput. Raises as `certify` does."""
        opened = open_artefact(artefact)
        self._sigma, self._n0 = resolve_sigma(sigma, opened, note), n0
        parameters = parameters_from_options(rule, radius=radius, grid=grid, tolerance=tolerance)
        self._engine = open_engine(
            opened, engine, batch_size=batch_size, device=device, threads=threads, low_latency=True
        )
        info = self._engine.info
        parameters |= noise_parameters(noise, self._sigma, info.input_shape)
        self._rule, self._noise = make_checked_rule(rule, parameters, self._sigma, n, n0, alpha, note), noise
        self._key = random_key() if seed is None else key_from_seed(seed)
        self.class_names = opened.class_names or [str(k) for k in range(info.num_classes)]
        self._batch_BCHW = np.zeros((info.batch_size, *info.input_shape), np.float32)
        self._asked = 0
        channels, height, width = info.input_shape
        grey = np.full((1, height, width, channels), 128, np.uint8)
        only = InMemorySet("grey", "test", grey, np.zeros(1, np.int64), self.class_names)
        self_test(self._engine, only, range(1), sigma=self._sigma, key=self._key, noise=noise)

    def __call__(self, image_CHW: np.ndarray) -> Verdict:
        """The verdict for one image, values in [0, 1]. BadInput for another shape, or values that are no numbers."""
        shape = self._engine.info.input_shape
        if image_CHW.shape != shape or not np.isfinite(image_CHW).all():
            raise BadInput(f"image of shape {image_CHW.shape}: the model takes finite values of shape {shape}")
        image_HWC = np.ascontiguousarray(np.moveaxis(image_CHW, 0, 2), np.float32)
        one = _Numbered(image_HWC, self._asked, self.class_names)
        self._asked += 1
        filler = BatchFiller(one, self._sigma, self._key, self._noise)
        scheduler = Scheduler([one.number], self._rule, self._n0, self._engine.info.num_classes, speculate=True)
        while segments := scheduler.next_batch(len(self._batch_BCHW)):
            filler.fill(self._batch_BCHW, segments)
            scheduler.record(segments, votes(self._engine.logits(self._batch_BCHW)))
        answers: list[ImageJob] = []
        scheduler.release(answers.append)
        verdict = answers[0].verdict
        assert verdict is not None
        return verdict


class _Numbered(InMemorySet):
    """One image under a number of its own, which addresses its noise."""

    def __init__(self, image_HWC: np.ndarray, number: int, class_names: list[str]) -> None:
        super().__init__("asked", "test", image_HWC[None], np.zeros(1, np.int64), class_names)
        self.number = number

    def image(self, index: int) -> np.ndarray:
        """The image, under its number."""
        assert index == self.number
        return super().image(0)
