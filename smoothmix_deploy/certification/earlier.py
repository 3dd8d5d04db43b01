"""The earlier file of `smx certify --reuse`: does it hold, does it go with this run, and is its engine here as it was?

Knows nothing of the changed engine; what is made of the two is in `reuse.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..artefacts import open_artefact
from ..certificates import Certificate, Manifest
from ..data import ImageSet
from ..engines import Engine, open_engine
from ..errors import BadInput, CheckFailed
from ..statistics.incremental import remaining_alphas
from .opening import check_images_fit
from .reuse_record import ReuseRecord
from .self_test import self_test
from .settings import Note
from .verify import checked


@dataclass(frozen=True)
class Earlier:
    """The earlier file, verified, and its engine, open."""

    path: Path
    manifest: Manifest
    lines: dict[int, Certificate]
    engine: Engine
    record: ReuseRecord
    alpha: float
    """Of the new certificates, all errors together."""


def open_earlier(
    reuse: Path | str | None, artefact: Path | str | None, replayed: int, *, images: ImageSet, indices: range,
    sigma: float, noise: str, rule: str, n: int, alpha: float, alpha_is_usual: bool, seed: int | None, note: Note,
) -> Earlier | None:  # fmt: skip
    """None without --reuse. BadInput for a file that does not go with this run, CheckFailed for one that does not
    follow from its votes or is not of `artefact` on an engine that is here."""
    if reuse is None:
        if artefact is not None or replayed != 10_000:
            raise BadInput("--reuse-artefact and --reuse-n: go with --reuse, the earlier certificate file")
        return None
    path = Path(reuse)
    if artefact is None:
        raise BadInput(f"--reuse {path}: needs --reuse-artefact, the artefact that these certificates are for")
    if rule != "fixed" or seed is not None:
        option = "--seed" if seed is not None else f"--rule {rule}"
        raise BadInput(f"{option}: does not go with --reuse (rule fixed, the noise of the earlier file)")
    old, _ = checked(path)
    manifest = old.manifest
    lines = {c.index: c for c in old.certificates}
    _check_agreement(path, manifest, lines, images, indices, sigma, noise)
    if not 1 <= replayed <= min(manifest.n, n - 1):
        raise BadInput(
            f"--reuse-n {replayed}: must lie in 1 .. {min(manifest.n, n - 1)}, for --n {n} and the {manifest.n} samples of {path}"
        )
    alpha = _total_alpha(path, manifest.alpha, alpha, alpha_is_usual, note)
    alpha_disagreement, alpha_fresh = remaining_alphas(alpha, manifest.alpha)
    record = ReuseRecord(
        file=path.name, sha256=old.sha256, n=manifest.n, n0=manifest.n0, alpha=manifest.alpha,
        alpha_disagreement=alpha_disagreement, alpha_fresh=alpha_fresh, replayed=replayed,
        artefact=manifest.artefact, engine=manifest.engine,
    )  # fmt: skip
    engine = _open_old_engine(path, manifest, Path(artefact))
    check_images_fit(engine, images)
    self_test(engine, images, indices, sigma=sigma, key=manifest.key, noise=noise)
    return Earlier(path, manifest, lines, engine, record, alpha)


def _check_agreement(
    path: Path, manifest: Manifest, lines: dict[int, Certificate], images: ImageSet, indices: range,
    sigma: float, noise: str,
) -> None:  # fmt: skip
    if manifest.rule != "fixed" or manifest.reuse is not None:
        what = "is itself made with --reuse" if manifest.reuse is not None else f"has rule {manifest.rule}"
        raise BadInput(f"--reuse {path}: {what}; only a file of --rule fixed can be reused")
    for option, was, now in (("--sigma", manifest.sigma, sigma), ("--noise", manifest.noise, noise)):
        if was != now:
            raise BadInput(f"--reuse {path}: has {option} {was}, this run {now}; they must agree")
    if manifest.data["digest"] != images.digest():
        raise BadInput(f"--reuse {path}: is for other images than --data {images.name} (digest differs)")
    for index in indices:
        if index not in lines:
            stored = manifest.data
            raise BadInput(
                f"--reuse {path}: has no certificate for image {index} (--start {stored['start']} --stop {stored['stop']} "
                f"--skip {stored['skip']}, {len(lines)} lines)"
            )
        if lines[index].label != images.labels[index]:
            raise BadInput(f"--reuse {path}: image {index} has label {lines[index].label} there")


def _total_alpha(path: Path, alpha_old: float, alpha: float, is_usual: bool, note: Note) -> float:
    """The error of the new certificates: more than the earlier file's, which is in it."""
    if not alpha < 0.5 or not alpha_old < 0.4:
        raise BadInput(f"--alpha {alpha:g}: must be below 0.5, and that of {path} ({alpha_old:g}) below 0.4")
    if alpha > alpha_old:
        return alpha
    suggested = float(f"{1.1 * alpha_old:.6g}")
    if not is_usual:
        raise BadInput(
            f"--alpha {alpha:g}: {path} was made at {alpha_old:g} already, and reuse adds to it; give more, e.g. --alpha "
            f"{suggested:g} (with --alpha-family: more in proportion)"
        )
    note(f"alpha {suggested:g}: the {alpha_old:g} of {path} and a tenth for the comparison and fresh samples (--alpha)")
    return suggested


def _open_old_engine(path: Path, manifest: Manifest, artefact: Path) -> Engine:
    """The engine of the earlier file, as it was; CheckFailed if it cannot be had like that."""
    opened = open_artefact(artefact)
    if opened.sha256 != manifest.artefact["sha256"]:
        raise CheckFailed(
            f"--reuse {path}: is for SHA-256 {manifest.artefact['sha256'][:12]}..., "
            f"--reuse-artefact {opened.file} has {opened.sha256[:12]}..."
        )
    said = manifest.engine
    engine = open_engine(
        opened, said["name"], batch_size=said["batch_size"], threads=said.get("threads"),
        device="cpu" if said["device"].startswith("cpu") else "cuda",
    )  # fmt: skip
    if engine.info.num_classes != manifest.num_classes:
        raise CheckFailed(f"--reuse {path}: has {manifest.num_classes} classes, its artefact {engine.info.num_classes}")
    for name, now in engine.info.record().items():
        if name in said and said[name] != now:
            raise CheckFailed(
                f"--reuse {path}: was made with engine {name} {said[name]}, here it is {now}: not the function that was certified"
            )
    return engine
