"""Is this engine a function of its rows? The theorem needs one, and runtimes do not promise it.

Before any sampling, a batch of noisy images is run again with its rows in another order, and once more among other
neighbours. If a row's vote changes, nothing is certified. Differences in the last bits of logits that change no vote
are recorded in the manifest.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data import ImageSet
from ..engines import Engine, concurrent_calls, votes
from ..errors import CheckFailed
from ..noise.gaussian import Stream
from ..noise.source import NoiseSource, make_noise

_LEAST_ROWS = 256


@dataclass(frozen=True)
class SelfTest:
    """What was seen. `bitwise_*`: all logits equal to the last bit; None: could not be tried."""

    rows: int
    bitwise_repeatable: bool
    bitwise_row_invariant: bool
    bitwise_batch_invariant: bool | None
    """Other batch sizes give the same logits. Not needed within a run: its batch shape is fixed."""
    invalid_votes: int

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def self_test(
    engine: Engine, images: ImageSet, indices: range, *, sigma: float, key: str, noise: str = "gaussian"
) -> SelfTest:
    """Run the checks on at least 256 noisy copies of up to 16 of the images, in batches of the engine's own size.

    CheckFailed if a vote is not a function of its row; BadInput for an image that the noise does not take.
    """
    size = engine.info.batch_size
    rounds = -(-_LEAST_ROWS // size)
    source = make_noise(noise, key, sigma, images.shape)
    found = [_one_round(engine, images, indices, source, 2 * size * i) for i in range(rounds)]
    return SelfTest(
        rows=size * rounds,
        bitwise_repeatable=all(one.bitwise_repeatable for one in found),
        bitwise_row_invariant=all(one.bitwise_row_invariant for one in found),
        bitwise_batch_invariant=None
        if found[0].bitwise_batch_invariant is None
        else all(one.bitwise_batch_invariant for one in found),
        invalid_votes=sum(one.invalid_votes for one in found),
    )


def _one_round(engine: Engine, images: ImageSet, indices: range, source: NoiseSource, first: int) -> SelfTest:
    size = engine.info.batch_size
    batch, other = (_noisy_batch(engine, images, indices, source, at) for at in (first, first + size))
    other = 2 * other + 1  # neighbours of another scale: what couples rows, a mean or a common scale, shows at once
    logits = engine.logits(batch).copy()
    again = engine.logits(batch).copy()
    order = np.roll(np.arange(size)[::-1], size // 3)
    permuted = np.empty_like(logits)
    permuted[order] = engine.logits(batch[order])
    among_others = engine.logits(np.where((np.arange(size) % 2 == 0)[:, None, None, None], batch, other))[::2]

    expected = votes(logits)
    for found, rows, what in (
        (again, slice(None), "when the same batch is run again"),
        *((one, slice(None), "when batches are run at the same time") for one in _together(engine, batch)),
        (permuted, slice(None), "with its position in the batch"),
        (among_others, slice(None, None, 2), "with the other images in the batch"),
    ):
        changed = int((votes(found) != expected[rows]).sum())
        if changed:
            raise CheckFailed(
                f"self-test: engine {engine.info.name} is not a function: {changed} of {len(found)} votes change {what}; "
                "certificates would be meaningless, so nothing was sampled (another --engine or --batch-size may do)"
            )
    return SelfTest(
        rows=size,
        bitwise_repeatable=_same(again, logits),
        bitwise_row_invariant=_same(permuted, logits) and _same(among_others, logits[::2]),
        bitwise_batch_invariant=_batch_invariant(engine, batch, logits),
        invalid_votes=int((expected < 0).sum()),
    )


def _together(engine: Engine, batch: np.ndarray) -> list[np.ndarray]:
    """The batch's logits from as many calls at a time as the sampler will make; none if it makes one."""
    calls = concurrent_calls(engine)
    if calls == 1:
        return []
    with ThreadPoolExecutor(calls) as pool:
        return list(pool.map(lambda _: engine.logits(batch).copy(), range(calls)))


def _noisy_batch(engine: Engine, images: ImageSet, indices: range, source: NoiseSource, first: int) -> np.ndarray:
    size = engine.info.batch_size
    chosen = indices[:16]
    pixels = [images.image(index).reshape(-1) for index in chosen]
    batch = np.empty((size, *images.shape), np.float32)
    for row, out_D in enumerate(batch.reshape(size, -1)):
        source.fill(out_D[None], pixels[row % len(chosen)], Stream.SELF_TEST, 0, first + row)
    return batch


def _batch_invariant(engine: Engine, batch: np.ndarray, logits: np.ndarray) -> bool | None:
    try:
        parts = [engine.logits(batch[a:b]) for a, b in ((0, 1), (1, 1 + len(batch) // 2)) if b <= len(batch) and b > a]
    except Exception:  # a runtime's own way of saying that the batch size is fixed
        return None
    found = np.concatenate(parts)
    return _same(found, logits[: len(found)])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()
