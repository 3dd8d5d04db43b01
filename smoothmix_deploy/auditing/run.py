"""`smx audit`: is there an adversarial image where a certificate says that there is none?

Gradients come from the PyTorch run folder, the verdict from the artefact on the engine of the certificates' manifest.
A flip inside a certified radius is declared at level alpha / images each, so a file whose claims are true is accused
with probability at most alpha. Flips outside show that the attack has teeth, and how tight the radii are.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..artefacts import Artefact, open_artefact
from ..certificates import Certificate, Manifest
from ..certification.opening import check_images_fit
from ..certification.self_test import self_test
from ..certification.settings import Note
from ..certification.verify import checked
from ..data import ImageSet, load_data
from ..devices import resolve_device
from ..engines import Engine, open_engine
from ..errors import BadInput, Stopped
from ..files import atomic_path, check_writable, sha256_file
from ..models.build import BaseClassifier
from ..models.run_folder import load_model, read_config
from ..noise.gaussian import KEY_BITS, key_from_seed, random_key
from ..progress import Progress, silent
from ..statistics.bounds import ABSTAIN
from .attack import Effort, strongest_perturbation
from .judge import Judge, Trial
from .points import place
from .result import AuditFile, AuditResult, ImageAudit

OUTSIDE = (1.25, 1.5, 2.0)


def audit(
    certs: Path | str,
    *,
    artefact: Path | str,
    run: Path | str | None = None,
    images: int = 10,
    restarts: int = 8,
    steps: int = 40,
    samples: int = 32,
    outside: Sequence[float] | None = None,
    n: int = 10_000,
    alpha: float = 0.001,
    data: str | None = None,
    data_root: Path | str | None = None,
    device: str = "auto",
    out: Path | str = "audit.jsonl",
    seed: int | None = None,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> AuditResult:
    """Attack `images` randomly chosen certificates; a line of `out` each, adversarial images beside it.

    `run`: the run folder that the artefact came from, for gradients; not needed where the artefact is one. `outside`:
    multiples of the radius, by default 1.25, 1.5 and 2. `n` votes judge a point; `alpha` is the probability of
    accusing a true file. Flips are in the result's `flips`, never raised. Raises BadInput, CheckFailed (the file's
    radii do not follow from its votes, the engine fails its self-test), Unavailable, Stopped.
    """
    out, certs = Path(out), Path(certs)
    effort = Effort(restarts, steps, samples)
    multiples = _check_options(out, images, effort, outside, n, alpha)
    manifest, eligible = _certified(certs)
    opened = _open_certified(artefact, manifest, certs)
    model = _white_box(opened, run, manifest, certs, note)
    known = _certified_images(manifest, certs, data, data_root)
    engine = _certified_engine(opened, manifest, device, note)
    check_images_fit(engine, known)
    key = _fresh_key(seed, manifest.key)
    chosen = sorted(random.Random(seed).sample(eligible, min(images, len(eligible))), key=lambda c: c.index)
    tested = range(chosen[0].index, chosen[-1].index + 1)
    self_test(engine, known, tested, sigma=manifest.sigma, key=key, noise=manifest.noise)
    judge = Judge(engine, sigma=manifest.sigma, noise=manifest.noise, key=key, n=n, level=alpha / len(chosen))
    attacker = Attacker(model, resolve_device(device), manifest, effort, key, judge)
    begin = time.monotonic()
    about = _about(certs, opened, engine, effort, multiples, n, alpha, seed, key, [c.index for c in chosen])
    with AuditFile(out, about) as file:
        found = _attack_all(attacker, chosen, known, multiples, file, progress)
    result = AuditResult(out, certs, found, len(eligible), multiples, alpha, round(time.monotonic() - begin, 3))
    if result.toothless:
        note("warning: the attack found no flip outside the radii either: this audit says little (try --outside 3,4)")
    return result


def _check_options(
    out: Path, images: int, effort: Effort, outside: Sequence[float] | None, n: int, alpha: float
) -> tuple[float, ...]:
    """The multiples to try outside, ascending; BadInput for what makes no sense."""
    check_writable(out, "--out")
    if out.exists():
        raise BadInput(f"--out {out}: exists; choose another")
    for option, value in (("images", images), ("n", n), *asdict(effort).items()):
        if value < 1:
            raise BadInput(f"--{option} {value}: must be at least 1")
    if not 0 < alpha < 0.5:
        raise BadInput(f"--alpha {alpha}: must lie in (0, 0.5), e.g. 0.001")
    multiples = tuple(sorted(set(OUTSIDE if outside is None else outside)))
    if not multiples or not all(1 < multiple <= 1000 for multiple in multiples):
        raise BadInput(f"--outside {','.join(f'{m:g}' for m in multiples)}: must be multiples above 1, e.g. 1.25,1.5,2")
    return multiples


def _certified(certs: Path) -> tuple[Manifest, list[Certificate]]:
    """The manifest and the certificates that claim a ball, of a file whose every line follows from its votes."""
    content, _ = checked(certs)
    eligible = [c for c in content.certificates if c.prediction != ABSTAIN and c.radius > 0]
    if not eligible:
        raise BadInput(f"{certs}: no certificate with a radius above 0, nothing to attack")
    return content.manifest, eligible


def _open_certified(path: Path | str, manifest: Manifest, certs: Path) -> Artefact:
    opened = open_artefact(path)
    said = str(manifest.artefact["sha256"])
    if opened.sha256 != said:
        raise BadInput(
            f"--artefact {path}: SHA-256 {opened.sha256[:12]}..., but {certs} has certificates for {said[:12]}..."
        )
    return opened


def _white_box(opened: Artefact, run: Path | str | None, manifest: Manifest, certs: Path, note: Note) -> BaseClassifier:
    """The PyTorch model behind the artefact, for gradients."""
    if run is None and opened.kind != "run":
        raise BadInput(f"--run: missing; {opened.path} has no gradients, name the run folder that it was exported from")
    source = opened if run is None else open_artefact(run)
    if source.kind != "run":
        raise BadInput(f"--run {run}: not a run folder")
    said = manifest.artefact.get("weights_sha256")
    if said is None:
        note(f"warning: {certs} does not say which weights were certified: --run is taken on trust (the engine judges)")
    elif source.weights_sha256 != said:
        raise BadInput(
            f"--run {source.path}: weights {str(source.weights_sha256)[:12]}..., but {certs} is about {said[:12]}..."
        )
    config = read_config(source.path)
    if config.num_classes != manifest.num_classes:
        raise BadInput(f"--run {source.path}: {config.num_classes} classes, the certificates {manifest.num_classes}")
    return load_model(source.path, config).eval().requires_grad_(False)


def _certified_images(manifest: Manifest, certs: Path, data: str | None, data_root: Path | str | None) -> ImageSet:
    stored = manifest.data
    known = load_data(data or stored["name"], root=data_root or stored.get("root"), split=stored["split"])
    if known.digest() != stored["digest"]:
        raise BadInput(f"--data {known.name}: not the data set of {certs} (digest differs)")
    return known


def _certified_engine(opened: Artefact, manifest: Manifest, device: str, note: Note) -> Engine:
    """The engine of the manifest, at its batch size; a note where this machine has another version or device."""
    said = manifest.engine
    engine = open_engine(
        opened, said["name"], batch_size=said["batch_size"], threads=said.get("threads"), device=device
    )
    here = engine.info.record()
    for name in ("version", "device"):
        if here[name] != said[name]:
            note(f"note: {said['name']}: {name} {here[name]} judges, {said[name]} was certified")
    return engine


def _fresh_key(seed: int | None, certified: str) -> str:
    """A key that no certificate has: derived from --seed otherwise than theirs."""
    if seed is None:
        return random_key()
    key = hashlib.sha256(f"audit {key_from_seed(seed)}".encode()).hexdigest()[: KEY_BITS // 4]
    assert key != certified
    return key


def _about(
    certs: Path, opened: Artefact, engine: Engine, effort: Effort, multiples: Sequence[float], n: int, alpha: float,
    seed: int | None, key: str, indices: list[int],
) -> dict[str, Any]:  # fmt: skip
    """Line 1 of the file: everything that the others depend on."""
    return {
        "certs": str(certs), "certs_sha256": sha256_file(certs), "artefact": opened.record(),
        "engine": engine.info.record(), **asdict(effort), "outside": multiples, "n": n, "alpha": alpha,
        "level": alpha / len(indices), "seed": seed, "key": key, "images": indices,
    }  # fmt: skip


class Attacker:
    """Finds the strongest point within multiples of a certificate's radius and has it judged."""

    def __init__(
        self, model: BaseClassifier, device: torch.device, manifest: Manifest, effort: Effort, key: str, judge: Judge
    ) -> None:
        self._model, self._device, self._effort, self._judge = model.to(device), device, effort, judge
        self._sigma, self._noise, self._key = manifest.sigma, manifest.noise, key

    def __call__(
        self, c: Certificate, image_CHW: np.ndarray, multiples: Sequence[float]
    ) -> tuple[Trial, np.ndarray, list[Trial]]:
        """(inside, its point, outside). Outside comes first: its directions are starts for the attack inside."""
        seed = int(hashlib.sha256(f"attack {self._key} {c.index}".encode()).hexdigest()[:15], 16)
        generator = torch.Generator(self._device).manual_seed(seed)
        deltas: list[torch.Tensor] = []
        outside: list[Trial] = []
        for multiple in multiples:
            outside.append(self._try(c, image_CHW, multiple, generator, deltas)[0])
            if outside[-1].flipped:
                break
        inside, point = self._try(c, image_CHW, 1.0, generator, deltas)
        return inside, point, outside

    def _try(
        self, c: Certificate, image_CHW: np.ndarray, multiple: float, generator: torch.Generator,
        deltas: list[torch.Tensor],
    ) -> tuple[Trial, np.ndarray]:  # fmt: skip
        radius = multiple * c.radius
        delta = strongest_perturbation(
            self._model, torch.from_numpy(image_CHW).to(self._device), c.prediction, radius, sigma=self._sigma,
            effort=self._effort, generator=generator, starts=deltas,
        )  # fmt: skip
        deltas.append(delta)
        point, distance = place(image_CHW, delta.cpu().numpy(), radius, self._noise)
        return self._judge(point, c.prediction, multiple, distance), point


def _attack_all(
    attacker: Attacker, chosen: list[Certificate], known: ImageSet, multiples: Sequence[float], file: AuditFile,
    progress: Progress,
) -> list[ImageAudit]:  # fmt: skip
    """Image by image; what is found is on disk before the next one begins."""
    found: list[ImageAudit] = []
    try:
        for c in chosen:
            flips = sum(image.inside.flipped for image in found)
            progress("attacking", len(found), len(chosen), f"image {c.index}  {flips} flips inside")
            inside, point, outside = attacker(c, known.image(c.index), multiples)
            saved = (
                _save(file.path.with_name(f"{file.path.stem}-image{c.index}.npy"), point) if inside.flipped else None
            )
            found.append(ImageAudit(c.index, c.prediction, c.radius, inside, outside, saved))
            file.write(found[-1].record())
    except KeyboardInterrupt:
        flips = sum(image.inside.flipped for image in found)
        raise Stopped(
            f"stopped: {len(found)} of {len(chosen)} images are in {file.path}, {flips} with a flip inside"
        ) from None
    progress("attacking", len(chosen), len(chosen), "")
    return found


def _save(path: Path, point_CHW: np.ndarray) -> str:
    with atomic_path(path) as temporary:
        np.save(temporary, point_CHW)
    return str(path)
