"""`smx certify --reuse`: certificates of a changed engine f' from the certificate file of f (fp16, int8, pruned).

Both vote on the first n' estimation samples of the earlier file, made again from its key, and the certificate rests on
f's earlier votes and on how often f was right and f' was not. Where f' would be promised much more by samples of its
own (its n' votes tell), its votes go on to n and the certificate rests on these alone. The mathematics, and why one
may choose after looking, is in `statistics/incremental.py`.

f must be the function that was certified: the same file on the same engine, version, device and batch size, and on a
CPU its votes must be among those that the earlier line counts. f' must not have been chosen by votes under this key.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..certificates import Certificate, CertificateWriter
from ..data import ImageSet
from ..engines import Engine
from ..errors import BadInput, CheckFailed, Stopped
from ..progress import Progress
from ..rules import Rule, Verdict, make_rule
from ..statistics.bounds import ABSTAIN
from ..statistics.incremental import promised_radius, worth_sampling
from .campaign import Campaign, Sample
from .earlier import Earlier
from .reuse_record import reused_verdict, top_class
from .sampler import BatchFiller, batches_per_buffer, votes_of_batches
from .scheduler import ImageJob, ImageVotes, Scheduler, Votes

_WINDOW = 16
"""Images worked on together: their batches are full, and a killed run votes on so many again."""


@dataclass(frozen=True)
class Replay:
    """What one image's replayed samples showed."""

    counts_K: np.ndarray
    """Votes of f'."""
    disagreements: int | None
    """f voted for the class and f' did not; None: f was not asked."""
    seconds: float


class ReuseCampaign(Campaign):
    """Replays, decides between reuse and fresh samples, and appends, a window of images after the other."""

    def __init__(
        self, earlier: Earlier, engine: Engine, sigma: float, key: str, noise: str, sample: Sample, num_classes: int,
        images: ImageSet, indices: range, rule: Rule, n0: int, out: Path, progress: Progress,
    ) -> None:  # fmt: skip
        if engine.info.num_classes != earlier.manifest.num_classes:
            raise BadInput(
                f"--reuse {earlier.path}: has {earlier.manifest.num_classes} classes, the model {engine.info.num_classes}"
            )
        super().__init__(sample, num_classes, images, indices, rule, n0, out, progress)
        self._engine, self._sigma, self._key, self._noise = engine, sigma, key, noise
        self._earlier, self._clock = earlier, 0.0
        self.old_samples = 0
        """Drawn by this call on the earlier engine."""

    def cost(self) -> str:
        """For people: what was saved."""
        kept = sum(c.reuse is not None for c in self.certificates)
        lines, mean = len(self.certificates), self._drawn / max(len(self.certificates), 1)
        return (
            f"reuse: {kept} of {lines} images rest on {self._earlier.path}; {mean:,.0f} samples an image on the changed "
            f"engine instead of {self._n0 + self._rule.largest_n:,}; {self.old_samples:,} in this run on the earlier one"
        )

    def run(self, writer: CertificateWriter, done: list[Certificate]) -> None:
        """As Campaign.run. No votes of unfinished images are kept: a window is done again."""
        for certificate in done:
            self._count(certificate)
        left = [index for index in self._indices if index not in {c.index for c in done}]
        self._clock = time.monotonic()
        try:
            for at in range(0, len(left), _WINDOW):
                for certificate in self._window(left[at : at + _WINDOW]):
                    writer.write(certificate)
                    self._count(certificate)
        except KeyboardInterrupt:
            raise Stopped(
                f"stopped: {len(self.certificates)} of {len(self._indices)} certificates are in {self._out}; "
                "run the same command with --resume to go on"
            ) from None

    def _window(self, indices: Sequence[int]) -> list[Certificate]:
        """The certificates of these images, in their order."""
        lines = self._earlier.lines
        asked = [i for i in indices if lines[i].prediction != ABSTAIN]
        replays = self._replay(asked, self._earlier.engine)
        replays |= self._replay([i for i in indices if lines[i].prediction == ABSTAIN], None)
        verdicts = {i: self._reused(i, replays[i]) for i in indices}
        fresh = {i for i in indices if worth_sampling(verdicts[i].radius, self._promised(replays[i]))}
        found = self._sample([i for i in indices if i in fresh], replays)
        for i in indices:
            if i not in fresh:
                found[i] = self._reused_certificate(i, verdicts[i], replays[i])
        return [found[i] for i in indices]

    def _replay(self, indices: Sequence[int], old: Engine | None) -> dict[int, Replay]:
        """Votes of f', and of `old` where it is given, on the replayed samples. CheckFailed if `old` votes otherwise."""
        classes, replayed = self._engine.info.num_classes, self._earlier.record.replayed
        engines = [self._engine] if old is None else [self._engine, old]
        size = self._engine.info.batch_size
        rows = size * batches_per_buffer(size, self._engine.info.input_shape)
        # beyond `rows`: so that either engine can fill up its last batch
        buffer = np.zeros((rows + max(e.info.batch_size for e in engines), *self._images.shape), np.float32)
        filler = BatchFiller(self._images, self._sigma, self._key, self._noise)
        # alpha is of no account here: the scheduler adds up votes, and no selection votes make no verdict
        rule = make_rule("fixed", sigma=self._sigma, n=replayed, alpha=self._earlier.record.alpha_fresh)
        scheduler = Scheduler(indices, rule, 0, classes)
        both = {i: np.zeros((classes + 1, classes + 1), np.int64) for i in indices} if old is not None else {}
        found: dict[int, Replay] = {}

        def keep(job: ImageJob) -> None:
            counts_K = job.estimation.votes.counts_K
            found[job.index] = Replay(counts_K, self._disagreements(job.index, both.pop(job.index, None)), job.seconds)

        clock = time.perf_counter()
        while segments := scheduler.next_batch(rows):
            filler.fill(buffer[:rows], segments)
            used = segments[-1].row + segments[-1].count
            vote_B, *old_votes = (votes_of_batches(engine, buffer, used) for engine in engines)
            for segment in segments if old_votes else ():
                part = slice(segment.row, segment.row + segment.count)
                # the last row and column are of votes that are none (-1)
                np.add.at(both[segment.index], (old_votes[0][part], vote_B[part]), 1)
            clock, before = time.perf_counter(), clock
            scheduler.record(segments, vote_B[:used], clock - before)
            scheduler.release(keep)
            self._after_batch(used, used if old is not None else 0)
        return found

    def _disagreements(self, index: int, both_KK: np.ndarray | None) -> int | None:
        """#{f = A and f' != A} from the votes of f (rows) and f' (columns); checks f's against the earlier line."""
        if both_KK is None:
            return None
        line, record = self._earlier.lines[index], self._earlier.record
        old = both_KK.sum(axis=1)
        counted = [line.counts.get(k, 0) for k in range(len(old) - 1)]
        counted.append(line.n - sum(counted))
        if self._earlier.engine.info.device.startswith("cpu") and (old > counted).any():
            k = int((old > counted).argmax())
            raise CheckFailed(
                f"--reuse {self._earlier.path}: image {index} has {counted[k]} votes for class {k} in {line.n} samples, but "
                f"{old[k]} in the first {record.replayed} of them now: not the function that was certified"
            )
        top = top_class(line.selection_counts)
        return int(old[top] - both_KK[top, top])

    def _reused(self, index: int, replay: Replay) -> Verdict:
        line = self._earlier.lines[index]
        return reused_verdict(
            self._earlier.record, line.selection_counts, line.counts, replay.disagreements, self._sigma,
            self._rule.parameters.get("slack", 0.0),
        )  # fmt: skip

    def _promised(self, replay: Replay) -> float:
        record, rule = self._earlier.record, self._rule
        return promised_radius(
            int(replay.counts_K.max()), record.replayed, rule.largest_n, record.alpha_fresh, self._sigma,
            rule.parameters.get("slack", 0.0),
        )  # fmt: skip

    def _reused_certificate(self, index: int, verdict: Verdict, replay: Replay) -> Certificate:
        line, label = self._earlier.lines[index], int(self._images.labels[index])
        return Certificate(
            index=index, label=label, prediction=verdict.prediction, radius=verdict.radius,
            correct=verdict.prediction == label, n=self._earlier.record.replayed, selection_counts={},
            counts={k: int(votes) for k, votes in enumerate(replay.counts_K) if votes}, p_lower=verdict.p_lower,
            seconds=round(replay.seconds, 6),
            reuse={"selection_counts": line.selection_counts, "counts": line.counts, "disagreements": replay.disagreements},
        )  # fmt: skip

    def _sample(self, indices: list[int], replays: dict[int, Replay]) -> dict[int, Certificate]:
        """Certificates from f' alone. The replayed votes are the first of its n: they need not be drawn again."""
        found: dict[int, Certificate] = {}
        replayed = self._earlier.record.replayed
        partial = {
            i: ImageVotes(i, 0, {}, replayed, Votes(replayed, replays[i].counts_K).counts, replays[i].seconds)
            for i in indices
        }
        scheduler = Scheduler(indices, self._rule, self._n0, self._engine.info.num_classes, partial)

        def keep(job: ImageJob) -> None:
            found[job.index] = self._certificate(job)

        def after_batch(samples: int) -> None:
            scheduler.release(keep)
            self._after_batch(samples, 0)

        self._draw(scheduler, after_batch, self._engine_time)
        scheduler.release(keep)
        return found

    def _after_batch(self, samples: int, old_samples: int) -> None:
        self.samples += samples
        self.old_samples += old_samples
        self.seconds = time.monotonic() - self._clock
        written, rate = len(self.certificates), self.samples / max(self.seconds, 1e-9)
        details = f"{self._certified} of {written} certified  {rate:,.0f} samples/s"
        self._progress("certifying", written, len(self._indices), details)
