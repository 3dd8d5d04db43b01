"""Is the certified class still the top class at this point? Asked of the deployed engine, with randomness of its own.

A first set of votes names the rival, fresh votes decide: the protocol of the certificates themselves, so that the test
needs no correction for the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..certification.sampler import run
from ..certification.scheduler import ImageJob, Scheduler
from ..data import InMemorySet
from ..engines import Engine
from ..noise.source import noise_slack
from ..rules import make_rule
from ..statistics.bounds import outvoted_p_value


@dataclass(frozen=True)
class Trial:
    """One adversarial point and its judgement. `multiple` of the certified radius was the attack's limit."""

    multiple: float
    distance: float
    """L2, in [0, 1] pixel units, of the point as judged."""
    rival: int
    """The class, other than the certified one, with the most votes of the first set."""
    rival_votes: int
    claimed_votes: int
    n: int
    p_value: float
    """Of H0: the certified class is at least as probable as the rival."""
    flipped: bool


class Judge:
    """Samples points on `engine`. Every point has noise of its own: `key` must not be the certificates'."""

    def __init__(self, engine: Engine, *, sigma: float, noise: str, key: str, n: int, level: float) -> None:
        """A flip is declared at p-values up to `level`. `n` votes decide, a tenth of it (at least 100) names the rival."""
        self._engine, self._sigma, self._noise, self._key = engine, sigma, noise, key
        self._n, self._n0, self._level = n, max(100, n // 10), level
        # Drawn noise is this close to the exact one (0 for float noise): what n votes can gain by it.
        self._slack = (self._n + self._n0) * noise_slack(noise, sigma, engine.info.input_shape)
        self._asked = 0

    def __call__(self, point_CHW: np.ndarray, claimed: int, multiple: float, distance: float) -> Trial:
        """The judgement of one point."""
        selection_K, counts_K = self._sample(point_CHW)
        selection_K[claimed] = -1
        rival = int(selection_K.argmax())
        p_value = min(1.0, outvoted_p_value(int(counts_K[rival]), int(counts_K[claimed])) + self._slack)
        return Trial(
            multiple, distance, rival, int(counts_K[rival]), int(counts_K[claimed]), self._n, p_value,
            p_value <= self._level,
        )  # fmt: skip

    def _sample(self, point_CHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Votes of the first set and of the deciding one."""
        point = NumberedPoint(point_CHW, self._asked, self._engine.info.num_classes)
        self._asked += 1
        rule = make_rule("fixed", sigma=self._sigma, n=self._n, alpha=0.001)  # only for its number of samples
        scheduler = Scheduler([point.number], rule, self._n0, self._engine.info.num_classes)
        run(
            self._engine, point, scheduler, sigma=self._sigma, key=self._key, noise=self._noise,
            after_batch=lambda samples: None, compiled=False,
        )  # fmt: skip
        jobs: list[ImageJob] = []
        scheduler.release(jobs.append)
        return jobs[0].selection.votes.counts_K.copy(), jobs[0].estimation.votes.counts_K


class NumberedPoint(InMemorySet):
    """One image under a number of its own, which addresses its noise."""

    def __init__(self, point_CHW: np.ndarray, number: int, num_classes: int) -> None:
        x_NHWC = np.ascontiguousarray(np.moveaxis(point_CHW, 0, 2))[None]
        super().__init__("adversarial", "test", x_NHWC, np.zeros(1, np.int64), [str(k) for k in range(num_classes)])
        self.number = number

    def image(self, index: int) -> np.ndarray:
        """The image, under its number."""
        assert index == self.number
        return super().image(0)
