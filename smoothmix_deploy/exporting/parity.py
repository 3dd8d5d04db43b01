"""The parity gate: do the artefact and the PyTorch model give the same votes on the inputs that matter?

Both see the same noisy images at the model's sigma. The gate compares an upper confidence bound on the rate at which
votes differ, so too few votes fail it as surely as too many differences. Knows nothing about file formats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data import ImageSet
from ..engines import NO_VOTE, Engine, votes
from ..noise.gaussian import GENERATOR, GaussianNoise, Stream
from ..statistics.bounds import clopper_pearson_upper

CONFIDENCE = 0.999


@dataclass(frozen=True)
class ParityReport:
    """What the gate saw. `upper_bound` is one-sided at `confidence`."""

    passed: bool
    votes: int
    disagreements: int
    rate: float
    upper_bound: float
    confidence: float
    max_disagreement: float
    invalid_votes: int
    """Votes of the artefact that were no class (NaN or Inf)."""
    classes_seen: int
    """Classes that the PyTorch model voted for: 1 means that the comparison says little."""
    max_logit_difference: float
    """Largest absolute difference of a logit, relative to the standard deviation of the model's logits."""
    images: str
    sigma: float
    key: str
    generator: str

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.disagreements} of {self.votes} votes differ (at most {self.upper_bound:.3%} at "
            f"{self.confidence:.1%} confidence, limit {self.max_disagreement:.3%})"
        )


def check_parity(
    reference: Engine,
    candidate: Engine,
    images: ImageSet,
    described: str,
    *,
    sigma: float,
    samples: int,
    max_disagreement: float,
    key: str,
) -> ParityReport:
    """Compare votes on `samples` noisy images, one draw each, cycling through `images`."""
    shape = reference.info.input_shape
    noise = GaussianNoise(key, int(np.prod(shape)))
    differ = invalid = 0
    seen: set[int] = set()
    worst, squares, total, numbers = 0.0, 0.0, 0.0, 0
    size = candidate.info.batch_size
    batch = np.empty((size, *shape), np.float32)
    for first in range(0, samples, size):
        count = min(size, samples - first)
        for row in range(size):  # a full batch always: the artefact's batch shape is part of what is checked
            number = first + row
            noise.fill(batch[row].reshape(1, -1), Stream.PARITY, number % len(images), number // len(images))
            batch[row] *= np.float32(sigma)
            batch[row] += images.image(number % len(images))
        expected, found = reference.logits(batch)[:count], candidate.logits(batch)[:count]
        vote_expected, vote_found = votes(expected), votes(found)
        # A vote that is no class never agrees, not even with another one.
        differ += int(((vote_expected != vote_found) | (vote_found == NO_VOTE)).sum())
        invalid += int((vote_found == NO_VOTE).sum())
        seen.update(vote_expected.tolist())
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(expected.astype(np.float64) - found)
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max()))
        squares, total, numbers = (
            squares + float(np.square(expected).sum()),
            total + float(expected.sum()),
            numbers + expected.size,
        )
    spread = max(squares / numbers - (total / numbers) ** 2, 0.0) ** 0.5
    bound = clopper_pearson_upper(differ, samples, 1 - CONFIDENCE)
    return ParityReport(
        passed=bound <= max_disagreement,
        votes=samples,
        disagreements=differ,
        rate=differ / samples,
        upper_bound=bound,
        confidence=CONFIDENCE,
        max_disagreement=max_disagreement,
        invalid_votes=invalid,
        classes_seen=len(seen - {NO_VOTE}),
        max_logit_difference=worst / spread if spread > 0 else worst,
        images=described,
        sigma=sigma,
        key=key,
        generator=GENERATOR,
    )
