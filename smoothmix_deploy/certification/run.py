"""`smx certify`: certificates of an engine for the images of a data set, into an append-only file.

Ties the pieces together: artefact -> engine -> self-test -> scheduler and sampler -> certificate file. A run can be
stopped or killed anywhere and resumed with `resume`; votes already counted are in the file or in its `.partial`
companion, and noise is a function of (key, image, sample), so the certificates are those of an uninterrupted run, and
those of one worker are those of many.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..artefacts import Artefact, open_artefact
from ..certificates import CertificateWriter, Manifest
from ..data import ImageSet, load_data, select, stored_spec
from ..errors import BadInput
from ..files import check_writable
from ..noise.gaussian import key_from_seed, random_key
from ..noise.source import GENERATORS, check_name
from ..progress import Progress, silent
from ..reference_log import is_reference_log, write_tsv
from ..rules import parameters_from_options, rule_label
from ..summary import Summary, summarise
from ..versions import versions
from .campaign import Campaign, Sample, engine_sampler
from .commitment import committed_key
from .opening import open_tested
from .resumption import check_order, check_same_run, file_to_resume
from .settings import USUAL_ALPHA, Note, alpha_of_family, make_checked_rule, noise_parameters, resolve_sigma
from .shards import Shard, check_shard, shard_of


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
    workers: int | None = None,
    ray: str | None = None,
    shard: str | None = None,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> CertifyResult:
    """Certify `artefact` on `engine` (None: the best that works); write certificates to `out` in data-set order.

    sigma defaults to the artefact's, `data` to the set it was trained on. Without `seed` the key of the noise comes
    from the operating system. `rule` and its `radius`, `grid` or `tolerance`: see `smoothmix_deploy.rules`.
    `key_file` and `challenge` give a key that was committed to before (`certification.commitment`).
    `alpha_family` is the error of all selected images together, in place of `alpha` for each. `reuse`: the certificate
    `alpha_family` is the error of all selected images together, in place of `alpha` for each. `reuse`: the certificate
    file of the classifier of which `artefact` is a changed form (`certification.reuse`), `reuse_artefact` that
    classifier. `workers` processes, or Ray actors if `ray` is "auto" or a cluster's address, sample side by side;
    `shard` "i/k" certifies the i-th of k parts of the selection (`merge`). Neither changes a certificate.
    Raises BadInput, CheckFailed (self-test, altered artefact), Unavailable, Stopped.
    """
    from .earlier import open_earlier
    from .reuse import ReuseCampaign
    from .teams import check_workers, open_team, workers_threads

    out, tsv = Path(out), None if tsv is None else Path(tsv)
    _check_outputs(out, tsv)
    check_workers(workers, ray, reuse is not None)
    part = check_shard(shard, seed)
    known = file_to_resume(out, resume)
    opened = open_artefact(artefact)
    sigma = resolve_sigma(sigma, opened, note)
    committed = committed_key(key_file, challenge, opened.sha256, seed=seed, reuse=reuse)
    check_name(noise)
    parameters = parameters_from_options(rule, radius=radius, grid=grid, tolerance=tolerance)
    images, spec = _images(opened, data, data_root, split, download)
    selection = select(len(images), start, stop, skip)
    indices = shard_of(selection, part)
    if alpha_family is not None:
        alpha = alpha_of_family(alpha_family, alpha, len(selection))
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
    elif workers is not None:
        threads = threads or workers_threads(workers, ray, device)
    key = known.manifest.key if known else random_key() if seed is None else key_from_seed(seed)
    key = earlier.manifest.key if earlier else committed.key if committed and not known else key
    with ExitStack() as stack:
        sample: Sample
        if workers is not None:
            team = stack.enter_context(
                open_team(
                    workers, ray, known.manifest if known else None, artefact=opened, engine=engine, batch_size=batch_size,
                    device=device, threads=threads, data=spec, indices=indices, sigma=sigma, key=key, noise=noise, note=note,
                )
            )  # fmt: skip
            info, tested, sample = team.greeting().info, team.greeting().self_test, team.sample
        else:
            runner, seen = open_tested(
                opened, images, indices, engine=engine, batch_size=batch_size, device=device, threads=threads,
                sigma=sigma, key=key, noise=noise, may_halve=known is None and earlier is None, note=note,
            )  # fmt: skip
            info, tested, sample = runner.info, seen.record(), engine_sampler(runner, images, sigma, key, noise)
        if not tested["bitwise_row_invariant"]:
            note(
                "warning: the engine's logits depend on the position in the batch in their last bits (no vote changed)"
            )
        manifest = Manifest(
            sigma=sigma, alpha=alpha, n0=n0, n=n, rule=rule, rule_parameters=stopping.parameters, noise=noise,
            generator=GENERATORS[noise],
            key=key, key_chosen_by_user=earlier.manifest.key_chosen_by_user if earlier else seed is not None,
            seed=earlier.manifest.seed if earlier else seed,
            artefact=opened.record(),
            engine=info.record(),
            data=_data_record(images, spec, indices, part),
            num_classes=info.num_classes,
            class_names=opened.class_names or images.class_names,
            self_test=tested,
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
            f"engine {info.name} ({info.device}), batches of {info.batch_size}, {len(indices)} images; "
            f"rule {rule_label(rule, stopping.parameters)}; "
            f"largest radius attainable: {stopping.largest_radius:.3f} ({stopping.largest_radius / sigma:.2f} sigma)"
        )
        settings = (sample, info.num_classes, images, indices, stopping, n0, out, progress)
        campaign = ReuseCampaign(earlier, runner, sigma, key, noise, *settings) if earlier else Campaign(*settings)
        with CertificateWriter(out, known or manifest) as writer:
            campaign.run(writer, done)
    if isinstance(campaign, ReuseCampaign):
        note(campaign.cost())
    if tsv is not None:
        write_tsv(tsv, campaign.certificates)
    return CertifyResult(
        out,
        known.manifest if known else manifest,
        summarise(campaign.certificates),
        campaign.samples,
        campaign.seconds,
    )


def _check_outputs(out: Path, tsv: Path | None) -> None:
    check_writable(out, "--out")
    if tsv is None:
        return
    check_writable(tsv, "--tsv")
    if tsv.absolute() == out.absolute():
        raise BadInput(f"--tsv {tsv}: is the certificate file; choose another name")
    if tsv.exists() and not is_reference_log(tsv):
        raise BadInput(f"--tsv {tsv}: exists and is no such table; choose another name")


def _data_record(images: ImageSet, spec: dict[str, Any], indices: range, shard: Shard | None) -> dict[str, Any]:
    return {
        **spec, "digest": images.digest(), "digest_of": images.digest_of, "images": len(images),
        "shape": list(images.shape), "start": indices.start, "stop": indices.stop, "skip": indices.step,
        **({"shard": str(shard)} if shard else {}),
    }  # fmt: skip


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
