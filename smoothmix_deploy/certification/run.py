"""`smx certify`: certificates of an engine for the images of a data set, into an append-only file.

Ties the pieces together: artefact -> engine -> self-test -> scheduler and sampler -> certificate file. A run can be
stopped or killed anywhere and resumed with `resume`; votes already counted are in the file or in its `.partial`
companion, and noise is a function of (key, image, sample), so the certificates are those of an uninterrupted run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..artefacts import Artefact, open_artefact
from ..certificates import (
    Certificate,
    CertificateWriter,
    Manifest,
)
from ..data import ImageSet, load_data, select, stored_spec
from ..engines import Engine, open_engine
from ..errors import BadInput, Stopped
from ..files import check_writable
from ..noise.gaussian import key_from_seed, random_key
from ..noise.source import GENERATORS, check_name, noise_slack
from ..progress import Progress, silent
from ..reference_log import is_reference_log, write_tsv
from ..rules import MOST_SAMPLES, Rule, parameters_from_options, rule_label
from ..statistics.bounds import ABSTAIN
from ..summary import Summary, summarise
from ..versions import versions
from .commitment import committed_key
from .partial import PartialVotes
from .resumption import check_order, check_same_run, file_to_resume
from .sampler import EngineTime, run
from .scheduler import ImageJob, Scheduler
from .self_test import self_test
from .settings import USUAL_ALPHA, Note, alpha_of_family, attainable_rule


@dataclass(frozen=True)
class CertifyResult:
    """A complete certificate file, and what it amounts to."""

    path: Path
    manifest: Manifest
    summary: Summary
    samples: int
    """Drawn by this call (a resumed run draws the rest only)."""
    seconds: float

    @property
    def rule(self) -> str:
        """With its radius, step or tolerance."""
        return rule_label(self.manifest.rule, self.manifest.rule_parameters)


def certify(
    artefact: Path | str,
    *,
    data: str | None = None,
    data_root: Path | str | None = None,
    split: str = "test",
    download: bool = False,
    start: int | None = None,
    stop: int | None = None,
    skip: int | None = None,
    engine: str | None = None,
    sigma: float | None = None,
    n: int = 100_000,
    n0: int = 100,
    alpha: float = USUAL_ALPHA,
    alpha_family: float | None = None,
    rule: str = "fixed",
    radius: float | None = None,
    grid: float | None = None,
    tolerance: float | None = None,
    noise: str = "gaussian",
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: Path | str = "certs.jsonl",
    tsv: Path | str | None = None,
    resume: bool = False,
    seed: int | None = None,
    key_file: Path | str | None = None,
    challenge: str | None = None,
    reuse: Path | str | None = None,
    reuse_artefact: Path | str | None = None,
    reuse_n: int = 10_000,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> CertifyResult:
    """Certify `artefact` on `engine` (None: the best that works); write certificates to `out` in data-set order.

    sigma defaults to the artefact's, `data` to the set it was trained on. Without `seed` the key of the noise comes
    from the operating system. `rule` and its `radius`, `grid` or `tolerance`: see `smoothmix_deploy.rules`.
    `key_file` and `challenge` give a key that was committed to before (`certification.commitment`).
    `alpha_family` is the error of all selected images together, in place of `alpha` for each. `reuse`: the certificate
    file of the classifier of which `artefact` is a changed form (`certification.reuse`), `reuse_artefact` that classifier. Raises BadInput, CheckFailed (self-test, altered artefact), Unavailable, Stopped.
    """
    from .earlier import open_earlier
    from .reuse import ReuseCampaign  # builds on Campaign below

    out = Path(out)
    check_writable(out, "--out")
    if tsv is not None:
        check_writable(Path(tsv), "--tsv")
        if Path(tsv).absolute() == out.absolute():
            raise BadInput(f"--tsv {tsv}: is the certificate file; choose another name")
        if Path(tsv).exists() and not is_reference_log(Path(tsv)):
            raise BadInput(f"--tsv {tsv}: exists and is no such table; choose another name")
    known = file_to_resume(out, resume)
    opened = open_artefact(artefact)
    sigma = resolve_sigma(sigma, opened)
    committed = committed_key(key_file, challenge, opened.sha256, seed=seed, reuse=reuse)
    check_name(noise)
    parameters = parameters_from_options(rule, radius=radius, grid=grid, tolerance=tolerance)
    images, spec = _images(opened, data, data_root, split, download)
    indices = select(len(images), start, stop, skip)
    if alpha_family is not None:
        alpha = alpha_of_family(alpha_family, alpha, len(indices))
    parameters |= noise_parameters(noise, sigma, images.shape)
    earlier = open_earlier(
        reuse, reuse_artefact, reuse_n, images=images, indices=indices, sigma=sigma, noise=noise, rule=rule, n=n,
        alpha=alpha, alpha_is_usual=alpha == USUAL_ALPHA and alpha_family is None, seed=seed, note=note,
    )  # fmt: skip
    alpha = earlier.alpha if earlier else alpha
    rule_alpha = earlier.record.alpha_fresh if earlier else alpha
    stopping = make_checked_rule(rule, parameters, sigma, n, n0, rule_alpha, note)
    if known is not None:  # what the user left open stays as it was
        batch_size = batch_size or known.manifest.engine.get("batch_size")
        threads = threads or known.manifest.engine.get("threads")
        engine = engine or known.manifest.engine.get("name")
    runner = open_engine(opened, engine, batch_size=batch_size, device=device, threads=threads)
    check_images_fit(runner, images)
    key = known.manifest.key if known else random_key() if seed is None else key_from_seed(seed)
    key = earlier.manifest.key if earlier else committed.key if committed and not known else key
    tested = self_test(runner, images, indices, sigma=sigma, key=key, noise=noise)
    if not tested.bitwise_row_invariant:
        note("warning: the engine's logits depend on the position in the batch in their last bits (no vote changed)")
    manifest = Manifest(
        sigma=sigma, alpha=alpha, n0=n0, n=n, rule=rule, rule_parameters=stopping.parameters, noise=noise,
        generator=GENERATORS[noise],
        key=key, key_chosen_by_user=earlier.manifest.key_chosen_by_user if earlier else seed is not None,
        seed=earlier.manifest.seed if earlier else seed,
        artefact=opened.record(),
        engine=runner.info.record(),
        data={**spec, "digest": images.digest(), "digest_of": images.digest_of, "images": len(images), "shape": list(images.shape),
              "start": indices.start, "stop": indices.stop, "skip": indices.step},
        num_classes=runner.info.num_classes,
        class_names=opened.class_names or images.class_names,
        self_test=tested.record(),
        versions=versions("torch", "onnxruntime", "onnxruntime-gpu"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        alpha_family=alpha_family,
        reuse=earlier.record.record() if earlier else None,
        commitment=committed.record() if committed else None,
    )  # fmt: skip
    if known is not None:
        check_same_run(out, known.manifest, manifest)
    done = known.certificates if known else []
    check_order(out, done, indices)
    note(
        f"engine {runner.info.name} ({runner.info.device}), batches of {runner.info.batch_size}, {len(indices)} images; "
        f"rule {rule_label(rule, stopping.parameters)}; "
        f"largest radius attainable: {stopping.largest_radius:.3f} ({stopping.largest_radius / sigma:.2f} sigma)"
    )
    settings = (runner, images, indices, stopping, n0, sigma, key, noise, out, progress)
    campaign = ReuseCampaign(earlier, *settings) if earlier else Campaign(*settings)
    with CertificateWriter(out, known or manifest) as writer:
        campaign.run(writer, done)
    if isinstance(campaign, ReuseCampaign):
        note(campaign.cost())
    if tsv is not None:
        write_tsv(Path(tsv), campaign.certificates)
    return CertifyResult(
        out,
        known.manifest if known else manifest,
        summarise(campaign.certificates),
        campaign.samples,
        campaign.seconds,
    )


class Campaign:
    """One run of the sampler over the images that have no certificate yet."""

    def __init__(
        self, engine: Engine, images: ImageSet, indices: range, rule: Rule, n0: int, sigma: float, key: str,
        noise: str, out: Path, progress: Progress,
    ) -> None:  # fmt: skip
        self._engine, self._images, self._indices, self._rule = engine, images, indices, rule
        self._n0, self._sigma, self._key, self._noise, self._out = n0, sigma, key, noise, out
        self._progress = progress
        self.certificates: list[Certificate] = []
        self._certified = self._drawn = 0  # of all certificates: with a radius or prediction; samples
        self.samples = 0
        self.seconds = 0.0
        self._engine_time = EngineTime()

    def run(self, writer: CertificateWriter, done: list[Certificate]) -> None:
        """Sample, decide, append. Stopped on Ctrl-C or when the file cannot be written."""
        for certificate in done:
            self._count(certificate)
        partial = PartialVotes(self._out)
        have = {certificate.index for certificate in done}
        scheduler = Scheduler(
            (i for i in self._indices if i not in have), self._rule, self._n0, self._engine.info.num_classes,
            partial.read(self._engine.info.num_classes, self._n0, self._rule.largest_n),
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
            run(
                self._engine,
                self._images,
                scheduler,
                sigma=self._sigma,
                key=self._key,
                noise=self._noise,
                after_batch=after_batch,
                engine_time=self._engine_time,
            )
            scheduler.release(write)
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
            selection_counts=_sparse(job.selection.votes.counts_K),
            counts=_sparse(job.estimation.votes.counts_K),
            p_lower=job.verdict.p_lower,
            seconds=round(job.seconds, 6),
        )

    def _count(self, certificate: Certificate) -> None:
        self.certificates.append(certificate)
        self._certified += certificate.prediction != ABSTAIN
        self._drawn += certificate.n + (self._n0 if certificate.reuse is None else 0)

    def _tell(self, scheduler: Scheduler) -> None:
        """Images in flight count by their samples against the mean so far: the time left follows the mix of images."""
        written, total = len(self.certificates), len(self._indices)
        mean = self._drawn / written if written else None
        share, decided = scheduler.share_done(mean), written + scheduler.decided
        rate = self.samples / max(self.seconds, 1e-9)
        details = f"{decided} of {total} decided  {self._certified} of {written} certified"
        details += f"  {mean:,.0f} samples an image" if mean else ""
        raw = self._engine_time.share(self.seconds)
        rate_text = f"{rate:,.0f} samples/s" + (f", {raw:.0%} of the raw engine" if raw else "")
        self._progress("certifying", written + min(share, total - written), total, f"{details}  {rate_text}")


def _sparse(counts_K: np.ndarray) -> dict[int, int]:
    return {int(k): int(counts_K[k]) for k in np.flatnonzero(counts_K)}


def check_images_fit(engine: Engine, images: ImageSet) -> None:
    """BadInput unless the images have the engine's shape and the labels are among its classes."""
    if images.shape != engine.info.input_shape:
        raise BadInput(
            f"--data {images.name}: images are {_times(images.shape)}, the model takes {_times(engine.info.input_shape)}"
        )
    highest = int(images.labels.max())
    if highest >= engine.info.num_classes:
        raise BadInput(
            f"--data {images.name}: has label {highest}, the model has classes 0 .. {engine.info.num_classes - 1}"
        )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def resolve_sigma(sigma: float | None, artefact: Artefact) -> float:
    sigma = artefact.sigma if sigma is None else sigma
    if sigma is None:
        raise BadInput(f"--sigma: missing, and {artefact.path} does not say which noise it was trained for")
    return float(sigma)


def noise_parameters(noise: str, sigma: float, shape: tuple[int, int, int]) -> dict[str, float]:
    """What the noise adds to the rule's parameters: `slack`, where it takes anything off p_lower."""
    slack = noise_slack(noise, sigma, shape)
    return {"slack": slack} if slack else {}


def make_checked_rule(
    rule: str, parameters: dict[str, float], sigma: float, n: int, n0: int, alpha: float, note: Note
) -> Rule:
    if n0 < 1:
        raise BadInput(f"--n0 {n0}: must be at least 1")
    if n0 > MOST_SAMPLES:
        raise BadInput(f"--n0 {n0}: must be at most {MOST_SAMPLES}")
    return attainable_rule(rule, parameters, sigma, n, alpha, note)


def _images(
    artefact: Artefact, data: str | None, data_root: Path | str | None, split: str, download: bool
) -> tuple[ImageSet, dict[str, Any]]:
    stored = artefact.data or {}
    name, root = data or stored.get("name"), data_root or stored.get("root")
    if not name:
        raise BadInput(f"--data: missing, and {artefact.path} does not say which data it was trained on")
    return load_data(name, root=root, split=split, download=download), {
        **stored_spec(name, root),
        "split": split,
    }
