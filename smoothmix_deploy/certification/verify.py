"""`smx verify`: are these certificates what their votes prove, and does the engine still vote like that?

Recomputing radii needs neither the engine nor torch. `rerun` samples some images again with the same key: the same
engine must give the same counts, another one counts that could come from the same probabilities.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..certificates import Certificate, CertificateFile, CorruptFile, Manifest, read_certificates
from ..errors import BadInput, CheckFailed
from ..noise.source import GENERATORS, noise_slack
from ..progress import Progress, silent
from ..rules import Rule, Verdict, make_rule
from ..statistics.bounds import consistent_p_value
from .reuse_record import ReuseRecord, check_against, reuse_of, verdict_of_line
from .shards import images_of, whole_selection

if TYPE_CHECKING:
    from ..engines import Engine
    from .scheduler import ImageJob, Scheduler

RERUN_ALPHA = 0.001
"""Chance that an honest file fails `rerun` on another engine, over all images together."""


@dataclass(frozen=True)
class VerifyResult:
    """All checks passed. `expected_images` is how many the manifest selects; fewer lines mean an unfinished run."""

    path: Path
    certificates: int
    expected_images: int
    artefact: str | None
    """"same file" or, for `rerun` on another engine, "same weights"; None: not asked."""
    rerun: list[int]
    """Indices of the images that were sampled again."""
    same_engine: bool | None


def verify(
    certs: Path | str,
    *,
    artefact: Path | str | None = None,
    rerun: int = 0,
    data: str | None = None,
    data_root: Path | str | None = None,
    engine: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    reuse_file: Path | str | None = None,
    progress: Progress = silent,
) -> VerifyResult:
    """Check a certificate file. CheckFailed names the first bad line; BadInput: missing file or option.

    `artefact`: its digest must be the manifest's; needed for `rerun` of that many randomly chosen images.
    `reuse_file`: the earlier file, of a file made with --reuse; it must be that one, and stand the same checks.
    """
    path = Path(certs)
    try:
        content = read_certificates(path)
    except CorruptFile as error:
        raise CheckFailed(str(error)) from None
    manifest = content.manifest
    if GENERATORS.get(manifest.noise) != manifest.generator:
        raise CheckFailed(f"{path}, line 1: unknown noise {manifest.noise} ({manifest.generator})")
    try:
        _check_slack(manifest)
        reuse = reuse_of(manifest)
        rule = make_rule(
            manifest.rule,
            sigma=manifest.sigma,
            n=manifest.n,
            alpha=reuse.alpha_fresh if reuse else manifest.alpha,
            **manifest.rule_parameters,
        )
        indices, family = images_of(manifest.data), len(whole_selection(manifest.data))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckFailed(f"{path}, line 1: impossible manifest ({error})") from None
    if manifest.alpha_family is not None and manifest.alpha != manifest.alpha_family / family:
        raise CheckFailed(
            f"{path}, line 1: alpha {manifest.alpha} is not alpha_family {manifest.alpha_family} / {family} images"
        )
    for line, certificate in enumerate(content.certificates, start=2):
        expected = indices[line - 2] if line - 2 < len(indices) else None
        reason = _wrong(certificate, manifest, rule, expected, reuse)
        if reason:
            raise CheckFailed(f"{path}, line {line} (image {certificate.index}): {reason}")
    if reuse_file is not None:
        verify(reuse_file)
        check_against(path, manifest, content.certificates, Path(reuse_file))
    if rerun < 0:
        raise BadInput(f"--rerun {rerun}: must be at least 0")
    if rerun and artefact is None:
        raise BadInput("--rerun: needs --artefact, the model to sample again")
    again: list[int] = []
    found: str | None = None
    same: bool | None = None
    if artefact is not None:
        found, again, same = _check_artefact(
            content, Path(artefact), rerun, data, data_root, engine, device, seed, progress
        )
    return VerifyResult(path, len(content.certificates), len(indices), found, again, same)


def _check_slack(manifest: Manifest) -> None:
    """ValueError unless p_lower was lowered by what the noise demands. Files of float noise need not say a shape."""
    said, needed = manifest.rule_parameters.get("slack", 0.0), 0.0
    if manifest.noise != "gaussian":
        channels, height, width = (int(size) for size in manifest.data["shape"])
        if min(channels, height, width) < 1:
            raise ValueError(f"shape {manifest.data['shape']}")
        needed = noise_slack(manifest.noise, manifest.sigma, (channels, height, width))
    if said != needed:
        raise ValueError(f"slack {said}, {manifest.noise} noise needs {needed}")


def _wrong(
    c: Certificate, manifest: Manifest, rule: Rule, expected_index: int | None, reuse: ReuseRecord | None
) -> str | None:
    """What is wrong with a certificate; None if nothing is."""
    if c.index != expected_index:
        wanted = "no further image" if expected_index is None else f"image {expected_index}"
        return f"the manifest's selection has {wanted} here"
    if sum(c.selection_counts.values()) > manifest.n0 or sum(c.counts.values()) > c.n or not 0 < c.n <= rule.largest_n:
        return f"more votes than samples (n0 {manifest.n0}, n {c.n})"
    if any(not 0 <= k < manifest.num_classes for k in (*c.selection_counts, *c.counts)):
        return f"votes for a class outside 0 .. {manifest.num_classes - 1}"
    if not 0 <= c.label < manifest.num_classes:
        return f"label {c.label} is outside 0 .. {manifest.num_classes - 1}"
    if c.reuse is None:
        verdict = _verdict_of_rule(c, manifest, rule)
    else:
        verdict = verdict_of_line(c, manifest, reuse) if reuse else "reuse: the manifest names no earlier file"
    if isinstance(verdict, str):
        return verdict
    if c.prediction != verdict.prediction:
        return f"prediction {c.prediction}, but the counts give {verdict.prediction}"
    for name, said, computed in (
        ("radius", c.radius, verdict.radius),
        ("p_lower", c.p_lower, verdict.p_lower),
    ):
        if not np.isclose(said, computed, rtol=1e-9, atol=1e-12):
            return f"{name} {said}, but the counts give {computed}"
    if c.correct != (c.prediction == c.label):
        return f"correct is {c.correct}, but the prediction is {c.prediction} and the label {c.label}"
    if not c.seconds >= 0:
        return f"seconds {c.seconds}"
    return None


def _verdict_of_rule(c: Certificate, manifest: Manifest, rule: Rule) -> Verdict | str:
    """What the rule makes of a line's counts, or why they cannot be its."""
    if c.n not in rule.looks:
        return f"n is {c.n}, the rule decides at {_shown(rule.looks)}"
    selection, counts = _dense(c.selection_counts, manifest), _dense(c.counts, manifest)
    verdict = rule.decide(selection, counts, c.n)
    if verdict is None:
        return f"with these counts the rule goes on after {c.n} samples"
    if not rule.can_reach(selection, counts, c.n):
        return f"with these counts the rule ends before {c.n} samples"
    return verdict


def _shown(looks: tuple[int, ...]) -> str:
    return ", ".join(map(str, looks if len(looks) <= 6 else (*looks[:3], "...", *looks[-2:])))


def _dense(counts: dict[int, int], manifest: Manifest) -> np.ndarray:
    dense = np.zeros(manifest.num_classes, np.int64)
    for k, votes in counts.items():
        dense[k] = votes
    return dense


def _check_artefact(
    content: CertificateFile, path: Path, rerun: int, data: str | None, data_root: Path | str | None,
    engine: str | None, device: str, seed: int | None, progress: Progress,
) -> tuple[str, list[int], bool | None]:  # fmt: skip
    """Digests, and the votes of `rerun` images; (what is the same, indices sampled, whether on the same engine)."""
    from ..artefacts import open_artefact

    manifest = content.manifest
    opened = open_artefact(path)
    same_file = opened.sha256 == manifest.artefact.get("sha256")
    same_weights = opened.weights_sha256 is not None and opened.weights_sha256 == manifest.artefact.get(
        "weights_sha256"
    )
    if not same_file and not (engine and same_weights):
        raise CheckFailed(
            f"{content.path}, line 1: these certificates are for SHA-256 {str(manifest.artefact.get('sha256'))[:12]}..., "
            f"{opened.file} has {opened.sha256[:12]}..."
        )
    what = "same file" if same_file else "same weights"
    if not rerun:
        return what, [], None

    from ..data import load_data
    from ..engines import open_engine

    stored = manifest.data
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
    runner = open_engine(
        opened,
        engine or manifest.engine["name"],
        batch_size=manifest.engine["batch_size"],
        threads=manifest.engine.get("threads"),
        device=device,
    )
    if runner.info.num_classes != manifest.num_classes:
        raise CheckFailed(
            f"{content.path}, line 1: {manifest.num_classes} classes, but the artefact has {runner.info.num_classes}"
        )
    said = {k: manifest.engine.get(k) for k in ("name", "version", "device", "precision", "batch_size")}
    same = same_file and said == {k: v for k, v in runner.info.record().items() if k in said}
    chosen = sorted(
        random.Random(seed).sample(content.certificates, min(rerun, len(content.certificates))),
        key=lambda c: c.index,
    )
    _sample_again(content, chosen, runner, images, same, progress)
    return what, [c.index for c in chosen], same


def _sample_again(
    content: CertificateFile,
    chosen: list[Certificate],
    engine: Engine,
    images: object,
    same: bool,
    progress: Progress,
) -> None:
    from ..data import ImageSet
    from .opening import check_images_fit
    from .sampler import run
    from .scheduler import Scheduler

    assert isinstance(images, ImageSet)
    check_images_fit(engine, images)
    manifest = content.manifest
    by_index = {c.index: c for c in chosen}
    line_of = {c.index: line for line, c in enumerate(content.certificates, start=2)}
    done = 0

    def check(job: ImageJob) -> None:
        nonlocal done
        said = by_index[job.index]
        where = f"{content.path}, line {line_of[job.index]} (image {job.index})"
        for name, claimed, found in (
            ("selection_counts", said.selection_counts, job.selection.votes),
            ("counts", said.counts, job.estimation.votes),
        ):
            if said.reuse is not None and name == "selection_counts":  # the class is the earlier file's
                continue
            again = {int(k): int(found.counts_K[k]) for k in np.flatnonzero(found.counts_K)}
            if same and (again != claimed or job.estimation.votes.drawn != said.n):
                raise CheckFailed(f"{where}: {name} {claimed}, but sampling again gives {again}")
            if not same:
                _consistent(where, name, claimed, again, found.drawn, tests=2 * len(chosen) * manifest.num_classes)
        done += 1
        progress("sampling again", done, len(chosen), "")

    for rule, indices in _reruns(manifest, chosen, same):
        scheduler = Scheduler(indices, rule, manifest.n0, manifest.num_classes)
        run(
            engine,
            images,
            scheduler,
            sigma=manifest.sigma,
            key=manifest.key,
            noise=manifest.noise,
            after_batch=partial(_release, scheduler, check),
        )
        scheduler.release(check)


def _reruns(manifest: Manifest, chosen: list[Certificate], same: bool) -> Iterator[tuple[Rule, list[int]]]:
    """On the same engine the rule must end where it did. On another one it may not: so many samples as it took then.

    A file made with --reuse has two sample numbers: those of reused and of fresh lines."""
    if same and manifest.reuse is None:
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


def _release(scheduler: Scheduler, check: Callable[[ImageJob], None], _: int) -> None:
    """After a batch: look at the images that are finished."""
    scheduler.release(check)


def _consistent(
    where: str, name: str, claimed: dict[int, int], again: dict[int, int], drawn: int, *, tests: int
) -> None:
    """Fisher's exact test for every class, RERUN_ALPHA divided among all tests of the call (Bonferroni)."""
    for k in sorted({*claimed, *again}):
        p = consistent_p_value(claimed.get(k, 0), drawn, again.get(k, 0), drawn)
        if p < RERUN_ALPHA / tests:
            raise CheckFailed(
                f"{where}: {name} has {claimed.get(k, 0)} votes for class {k}, sampling again on this engine gives "
                f"{again.get(k, 0)} of {drawn}: not one probability (p = {p:.1e})"
            )
