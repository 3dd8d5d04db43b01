"""One run over the images that have no certificate yet: votes become certificates, written in data-set order.

Where the votes come from is a function that is passed in: an engine in this process (`engine_sampler`) or a team of
workers (`driver.Team.run`). Keeps the votes of unfinished images, so that stopping loses none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..certificates import Certificate, CertificateWriter
from ..data import ImageSet
from ..engines import Engine
from ..errors import Stopped
from ..progress import Progress
from ..rules import Rule
from ..statistics.bounds import ABSTAIN
from .partial import PartialVotes
from .sampler import EngineTime, run
from .scheduler import ImageJob, Scheduler

Sample = Callable[[Scheduler, Callable[[int], None], EngineTime], None]
"""Sample until the scheduler has nothing left, calling back with the number of samples now and then."""


def engine_sampler(engine: Engine, images: ImageSet, sigma: float, key: str, noise: str) -> Sample:
    """Samples drawn here."""

    def sample(scheduler: Scheduler, after_batch: Callable[[int], None], engine_time: EngineTime) -> None:
        run(
            engine, images, scheduler, sigma=sigma, key=key, noise=noise, after_batch=after_batch,
            engine_time=engine_time,
        )  # fmt: skip

    return sample


class Campaign:
    """One run of the sampler over the images that have no certificate yet."""

    def __init__(
        self, sample: Sample, num_classes: int, images: ImageSet, indices: range, rule: Rule, n0: int, out: Path,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._draw, self._num_classes, self._images, self._indices = sample, num_classes, images, indices
        self._rule, self._n0, self._out, self._progress = rule, n0, out, progress
        self.certificates: list[Certificate] = []
        self._certified = self._drawn = 0  # of all certificates: with a radius or prediction; samples
        self.samples = 0
        self.seconds = 0.0
        self._engine_time = EngineTime()
        self._tell_at = 0.0

    def run(self, writer: CertificateWriter, done: list[Certificate]) -> None:
        """Sample, decide, append. Stopped on Ctrl-C or when the file cannot be written."""
        for certificate in done:
            self._count(certificate)
        partial = PartialVotes(self._out)
        have = {certificate.index for certificate in done}
        scheduler = Scheduler(
            [i for i in self._indices if i not in have], self._rule, self._n0, self._num_classes,
            partial.read(self._num_classes, self._n0, self._rule.largest_n),
        )  # fmt: skip
        clock = time.monotonic()

        def write(job: ImageJob) -> None:
            certificate = self._certificate(job)
            writer.write(certificate)
            self._count(certificate)

        def after_batch(samples: int) -> None:
            self.samples += samples
            self.seconds = time.monotonic() - clock
            scheduler.release(write)
            partial.write_now_and_then(scheduler.snapshot)
            self._tell(scheduler)

        try:
            self._draw(scheduler, after_batch, self._engine_time)
            scheduler.release(write)
            self._tell(scheduler, last=True)
        except KeyboardInterrupt:
            partial.write(scheduler.snapshot())
            raise Stopped(
                f"stopped: {len(self.certificates)} of {len(self._indices)} certificates are in {self._out}; "
                "run the same command with --resume to go on"
            ) from None
        except Stopped:
            partial.write(scheduler.snapshot())
            raise
        partial.remove()

    def _certificate(self, job: ImageJob) -> Certificate:
        assert job.verdict is not None
        label = int(self._images.labels[job.index])
        return Certificate(
            index=job.index,
            label=label,
            prediction=job.verdict.prediction,
            radius=job.verdict.radius,
            correct=job.verdict.prediction == label,
            n=job.estimation.votes.drawn,
            selection_counts=job.selection.votes.counts,
            counts=job.estimation.votes.counts,
            p_lower=job.verdict.p_lower,
            seconds=round(job.seconds, 6),
        )

    def _count(self, certificate: Certificate) -> None:
        self.certificates.append(certificate)
        self._certified += certificate.prediction != ABSTAIN
        self._drawn += certificate.n + (self._n0 if certificate.reuse is None else 0)

    def _tell(self, scheduler: Scheduler, last: bool = False) -> None:
        """Images in flight count by their samples against the mean so far: the time left follows the mix of images.

        At most a twentieth of the time goes into it: there may be thousands of images in flight."""
        begun = time.monotonic()
        if begun < self._tell_at and not last:
            return
        written, total = len(self.certificates), len(self._indices)
        mean = self._drawn / written if written else None
        share, decided = scheduler.share_done(mean), written + scheduler.decided
        rate = self.samples / max(self.seconds, 1e-9)
        details = f"{decided} of {total} decided  {self._certified} of {written} certified"
        details += f"  {mean:,.0f} samples an image" if mean else ""
        raw = self._engine_time.share(self.seconds)
        rate_text = f"{rate:,.0f} samples/s" + (f", {raw:.0%} of the raw engine" if raw else "")
        self._progress("certifying", written + min(share, total - written), total, f"{details}  {rate_text}")
        now = time.monotonic()
        self._tell_at = now + 20 * (now - begun)
