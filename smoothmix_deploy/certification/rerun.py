"""`smx verify --rerun`: sample some images again and compare.

The same engine with the same noise must give the same counts. Otherwise the noise is new, and the votes are compared by
exact two-sample tests: another engine, or with `fresh` the same one, on draws that nobody could prepare for.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artefacts import Artefact, open_artefact
from ..certificates import Certificate, CertificateFile, Manifest
from ..errors import CheckFailed
from ..noise.gaussian import random_key
from ..progress import Progress
from ..rules import Rule, make_rule
from ..statistics.two_sample import Pair, excess_p_value, votes_p_value

if TYPE_CHECKING:
    from ..data import ImageSet
    from ..engines import Engine
    from .scheduler import ImageJob, Scheduler

RERUN_ALPHA = 0.001
"""Chance that an honest file fails the comparison with new noise, over all images and tests together."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    images: int
    data: str | None
    data_root: Path | str | None
    engine: str | None
    device: str
    seed: int | None
    fresh: bool


def check_artefact(
    content: CertificateFile, sample_numbers: int, path: Path, request: Request, progress: Progress
) -> tuple[str, list[int], bool | None]:
    """Digests, and the votes of some images: (what is the same, indices sampled, whether on the same engine).

    `sample_numbers`: at how many the rule can have ended. CheckFailed names a line.
    """
    said, opened = content.manifest.artefact, open_artefact(path)
    same_file = opened.sha256 == said["sha256"]
    same_weights = opened.weights_sha256 is not None and opened.weights_sha256 == said.get("weights_sha256")
    if not same_file and not (request.engine and same_weights):
        raise CheckFailed(
            f"{content.path}, line 1: these certificates are for SHA-256 {said['sha256'][:12]}..., "
            f"{opened.file} has {opened.sha256[:12]}..."
        )
    what = "same file" if same_file else "same weights"
    if not request.images:
        return what, [], None
    return what, *_rerun(content, sample_numbers, opened, same_file, request, progress)


def certified_images(content: CertificateFile, data: str | None, data_root: Path | str | None) -> ImageSet:
    """The data set that was certified; CheckFailed if it is another one, or a label is not its."""
    from ..data import load_data

    stored = content.manifest.data
    images = load_data(data or stored["name"], root=data_root or stored.get("root"), split=stored["split"])
    if images.digest() != stored["digest"]:
        raise CheckFailed(
            f"{content.path}, line 1: --data {images.name} is not the data set that was certified (digest differs)"
        )
    if stored.get("shape", list(images.shape)) != list(images.shape):  # the noise's slack depends on it
        raise CheckFailed(f"{content.path}, line 1: shape {stored['shape']}, but the images are {list(images.shape)}")
    for line, c in enumerate(content.certificates, start=2):
        if c.label != images.labels[c.index]:
            raise CheckFailed(
                f"{content.path}, line {line} (image {c.index}): label {c.label}, but the data set has {images.labels[c.index]}"
            )
    return images


def _rerun(
    content: CertificateFile, sample_numbers: int, opened: Artefact, same_file: bool, request: Request, progress: Progress
) -> tuple[list[int], bool]:  # fmt: skip
    from ..engines import open_engine

    manifest = content.manifest
    images = certified_images(content, request.data, request.data_root)
    engine = open_engine(
        opened,
        request.engine or manifest.engine["name"],
        batch_size=manifest.engine["batch_size"],
        threads=manifest.engine.get("threads"),
        device=request.device,
    )
    if engine.info.num_classes != manifest.num_classes:
        raise CheckFailed(
            f"{content.path}, line 1: {manifest.num_classes} classes, but the artefact has {engine.info.num_classes}"
        )
    said = {k: manifest.engine.get(k) for k in ("name", "version", "device", "precision", "batch_size")}
    same = same_file and said == {k: v for k, v in engine.info.record().items() if k in said}
    chosen = random.Random(request.seed).sample(content.certificates, min(request.images, len(content.certificates)))
    chosen.sort(key=lambda c: c.index)
    replayed = same and not request.fresh
    comparison = _Comparison(content, chosen, replayed, sample_numbers, progress)
    key = manifest.key if replayed else _new_key(manifest.key, request.seed)
    _sample(engine, images, manifest, chosen, replayed, key, comparison)
    comparison.finish()
    return [c.index for c in chosen], same


def _new_key(old: str, seed: int | None) -> str:
    """A key that the file's noise has nothing to do with."""
    if seed is None:
        return random_key()
    return hashlib.sha256(f"smx verify: instead of {old}, seed {seed}".encode()).hexdigest()[: len(old)]


def _sample(
    engine: Engine, images: ImageSet, manifest: Manifest, chosen: list[Certificate], replayed: bool, key: str,
    comparison: _Comparison,
) -> None:  # fmt: skip
    from .opening import check_images_fit
    from .sampler import run
    from .scheduler import Scheduler

    check_images_fit(engine, images)
    for rule, indices in _rules(manifest, chosen, replayed):
        scheduler = Scheduler(indices, rule, manifest.n0, manifest.num_classes)
        run(
            engine,
            images,
            scheduler,
            sigma=manifest.sigma,
            key=key,
            noise=manifest.noise,
            after_batch=partial(_release, scheduler, comparison.take),
        )
        scheduler.release(comparison.take)


def _rules(manifest: Manifest, chosen: list[Certificate], replayed: bool) -> Iterator[tuple[Rule, list[int]]]:
    """With the same votes the rule must end where it did. With others it may not: so many samples as it took then.

    A file made with --reuse has two sample numbers: those of reused and of fresh lines."""
    if replayed and manifest.reuse is None:
        yield (
            make_rule(
                manifest.rule, sigma=manifest.sigma, n=manifest.n, alpha=manifest.alpha, **manifest.rule_parameters
            ),
            [c.index for c in chosen],
        )
        return
    for n in sorted({c.n for c in chosen}):
        rule = make_rule("fixed", sigma=manifest.sigma, n=n, alpha=manifest.alpha)
        yield rule, [c.index for c in chosen if c.n == n]


def _release(scheduler: Scheduler, take: Callable[[ImageJob], None], _: int) -> None:
    """After a batch: look at the images that are finished."""
    scheduler.release(take)


@dataclass
class _Comparison:
    """Holds the file's votes against the new ones, image by image."""

    content: CertificateFile
    chosen: list[Certificate]
    replayed: bool
    sample_numbers: int
    """At so many the rule could have ended. It chose one by the votes, so each is a test of its own."""
    progress: Progress
    pairs: list[Pair] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._said = {c.index: c for c in self.chosen}
        self._line = {c.index: line for line, c in enumerate(self.content.certificates, start=2)}
        self._done = 0

    def take(self, job: ImageJob) -> None:
        """CheckFailed names the image whose votes differ, or cannot come from one classifier."""
        said = self._said[job.index]
        where = f"{self.content.path}, line {self._line[job.index]} (image {job.index})"
        for name, claimed, tally in (
            ("selection_counts", said.selection_counts, job.selection),
            ("counts", said.counts, job.estimation),
        ):
            if said.reuse is not None and name == "selection_counts":  # the class is the earlier file's
                continue
            drawn, counts_K = tally.votes.drawn, tally.votes.counts_K
            again = {int(k): int(counts_K[k]) for k in np.flatnonzero(counts_K)}
            if self.replayed and (again != claimed or job.estimation.votes.drawn != said.n):
                raise CheckFailed(f"{where}: {name} {claimed}, but sampling again gives {again}")
            if not self.replayed:
                self._compare(where, name, claimed, again, drawn)
        self._done += 1
        self.progress("sampling again", self._done, len(self.chosen), "")

    def _compare(self, where: str, name: str, claimed: dict[int, int], again: dict[int, int], drawn: int) -> None:
        """Half of RERUN_ALPHA for single images: an eighth of it for selection counts, the rest for counts."""
        share = 1 / 8 if name == "selection_counts" else 7 / 8
        p = votes_p_value(claimed, again, drawn)
        if p < RERUN_ALPHA / 2 * share / (len(self.chosen) * self.sample_numbers):
            raise CheckFailed(
                f"{where}: {name} {claimed}, but sampling again gives {again}: not the votes of one classifier (p = {p:.1e})"
            )
        if name == "counts" and {*claimed, *again}:
            top = min({*claimed, *again}, key=lambda k: (-claimed.get(k, 0) - again.get(k, 0), k))
            self.pairs.append((claimed.get(top, 0), again.get(top, 0), drawn))

    def finish(self) -> None:
        """The other half for all images together: claims that are a little too high, everywhere.

        Only where the sample number is given: a sequential rule stops where votes are high, honestly."""
        if self.replayed or self.sample_numbers > 1:
            return
        p = excess_p_value(self.pairs)
        if p < RERUN_ALPHA / 2:
            claimed, again = (sum(pair[i] for pair in self.pairs) for i in (0, 1))
            raise CheckFailed(
                f"{self.content.path}, lines {', '.join(str(self._line[c.index]) for c in self.chosen)}: {claimed} votes for "
                f"the top classes, but sampling again gives {again}: too many together (p = {p:.1e})"
            )
