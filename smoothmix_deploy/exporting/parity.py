"""The parity gate: do the artefact and its source give the same votes on the inputs that matter?

Both see the same noisy images at the model's sigma, several draws of each. The gate compares an upper confidence bound
on the rate at which votes differ, so too few votes fail it as surely as too many differences; and the mean certified
radius that either would get from its own votes, which is what a user loses. Knows nothing about file formats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data import ImageSet
from ..engines import NO_VOTE, Engine, votes
from ..noise.gaussian import GENERATOR, GaussianNoise, Stream
from ..statistics.bounds import certified_radius, clopper_pearson_lower, clopper_pearson_upper

CONFIDENCE = 0.999
DRAWS = 32
"""Of each image: enough for radii up to 0.86 sigma at alpha = 0.001."""


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
    mean_radius: float
    """Of the artefact: mean certified radius over the images, from `DRAWS` votes each, at alpha = 0.001."""
    mean_radius_reference: float
    radius_lost: float
    """1 - mean_radius / mean_radius_reference; 0 where the reference has none to lose."""
    max_radius_lost: float
    images: str
    sigma: float
    key: str
    generator: str

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.disagreements} of {self.votes} votes differ (at most {self.upper_bound:.3%} at "
            f"{self.confidence:.1%} confidence, limit {self.max_disagreement:.3%}); mean certified radius "
            f"{self.mean_radius:.4f} against {self.mean_radius_reference:.4f} ({self.radius_lost:.2%} lost, "
            f"limit {self.max_radius_lost:.1%})"
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
    max_radius_lost: float = 1.0,
) -> ParityReport:
    """Compare votes on `samples` noisy images: up to `DRAWS` draws of as many of `images` as that makes."""
    shape = reference.info.input_shape
    noise = GaussianNoise(key, int(np.prod(shape)))
    differ = invalid = 0
    used = min(len(images), -(-samples // DRAWS))
    votes_of: list[np.ndarray] = []
    worst, squares, total, numbers = 0.0, 0.0, 0.0, 0
    size = candidate.info.batch_size
    batch = np.empty((size, *shape), np.float32)
    for first in range(0, samples, size):
        count = min(size, samples - first)
        for row in range(size):  # a full batch always: the artefact's batch shape is part of what is checked
            number = first + row
            index = number % used * (len(images) // used)
            noise.fill(batch[row].reshape(1, -1), Stream.PARITY, index, number // used)
            batch[row] *= np.float32(sigma)
            batch[row] += images.image(index)
        expected, found = reference.logits(batch)[:count], candidate.logits(batch)[:count]
        vote_expected, vote_found = votes(expected), votes(found)
        # A vote that is no class never agrees, not even with another one.
        differ += int(((vote_expected != vote_found) | (vote_found == NO_VOTE)).sum())
        invalid += int((vote_found == NO_VOTE).sum())
        votes_of.append(np.stack([vote_expected, vote_found]))
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
    both = np.concatenate(votes_of, axis=1)
    radius_reference, radius = (_mean_radius(votes_B, used, sigma) for votes_B in both)
    lost = max(0.0, 1 - radius / radius_reference) if radius_reference > 0 else 0.0
    return ParityReport(
        passed=bound <= max_disagreement and lost <= max_radius_lost,
        votes=samples,
        disagreements=differ,
        rate=differ / samples,
        upper_bound=bound,
        confidence=CONFIDENCE,
        max_disagreement=max_disagreement,
        invalid_votes=invalid,
        classes_seen=len(set(both[0].tolist()) - {NO_VOTE}),
        max_logit_difference=worst / spread if spread > 0 else worst,
        mean_radius=radius,
        mean_radius_reference=radius_reference,
        radius_lost=lost,
        max_radius_lost=max_radius_lost,
        images=described,
        sigma=sigma,
        key=key,
        generator=GENERATOR,
    )


def _mean_radius(votes_B: np.ndarray, images: int, sigma: float) -> float:
    """Mean certified radius; vote number i is of image i modulo `images`. Abstentions count as 0."""
    radii = []
    for first in range(images):
        mine = votes_B[first::images]
        top = np.bincount(mine[mine >= 0], minlength=1).max()
        radii.append(certified_radius(clopper_pearson_lower(int(top), len(mine), 1 - CONFIDENCE), sigma))
    return float(np.mean(radii))
