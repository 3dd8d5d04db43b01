"""`smx train`: from a data set and a recipe to a run folder.

Writes `config.json`, `model.safetensors`, `metrics.jsonl` (a line an epoch), at the end `training.png` and
`MODEL_CARD.md`, and `state.pt`, from which `resume` goes on exactly: order, augmentation and noise are functions of (seed, epoch, step), so on the CPU a resumed run's weights are
those of an uninterrupted one, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..data import ImageSet, data_info, load_data, select, stored_spec
from ..devices import resolve_device
from ..errors import BadInput
from ..models.build import build_model, canonical_arch
from ..models.run_folder import CONFIG, RunConfig, check_folder, read_config, write_config
from ..progress import Progress, silent
from ..versions import versions
from .loop import Trainer
from .methods import step_function
from .probe import Probe
from .recipes import HyperParameters, Recipe, as_record, find_recipe, override, recipes
from .record import RunRecord

_DEFAULT_ARCH = {
    "digits": "digits-cnn", "mnist": "lenet", "fashion-mnist": "lenet", "cifar10": "cifar-resnet110",
    "cifar100": "cifar-resnet110", "svhn": "cifar-resnet110", "imagenet": "resnet50",
}  # fmt: skip


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder, and the metrics of its last epoch."""

    path: Path
    epochs: int
    metrics: dict[str, Any]


def train(
    *,
    out: Path | str,
    data: str | None = None,
    arch: str | None = None,
    method: str | None = None,
    sigma: float | None = None,
    recipe: str | None = None,
    data_root: Path | str | None = None,
    download: bool = False,
    start: int | None = None,
    stop: int | None = None,
    skip: int | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    probe: int = 0,
    probe_every: int = 1,
    probe_radius: float | None = None,
    tensorboard: bool = False,
    progress: Progress = silent,
    **hyper_parameters: Any,
) -> TrainResult:
    """Train a base classifier into the run folder `out`.

    Values come from `recipe`, or from the recipe that fits (method, data, sigma), and can each be overridden: see
    `recipes.HyperParameters` for the names. `start`, `stop`, `skip` choose training images. `probe`: the certified
    accuracy at `probe_radius` (None: sigma) on so many test images, every `probe_every` epochs, into metrics.jsonl.
    Raises BadInput, CheckFailed (the loss is not finite), Unavailable (no TensorBoard), Stopped (interrupted; resumable).
    """
    out = Path(out)
    if not 0 <= seed < 2**63:
        raise BadInput(f"--seed {seed}: must lie in 0 .. 2^63 - 1")
    chosen = _choose(recipe, data, arch, method, sigma)
    hp = override(chosen.hyper_parameters, sigma=sigma, **hyper_parameters)
    step_function(hp.method)  # BadInput for unknown methods, before anything is written
    check_folder(out, resume=resume)
    images = load_data(chosen.data, root=data_root, split="train", download=download)
    if (start, stop, skip) != (None, None, None):
        images = images.subset(select(len(images), start, stop, skip))
    if min(hp.batch_size, len(images)) < hp.m or len(images) < 2:
        raise BadInput(
            f"--m {hp.m}: needs at least {max(hp.m, 2)} training images, --data {chosen.data} has {len(images)}"
        )
    info = data_info(chosen.data)
    config = RunConfig(
        arch=canonical_arch(chosen.arch),
        num_classes=images.num_classes,
        class_names=images.class_names,
        input_shape=images.shape,
        mean_sd=info.mean_sd if info else None,
        sigma=hp.sigma,
        method=hp.method,
        recipe=chosen.name or None,
        seed=seed,
        data={
            **stored_spec(chosen.data, data_root),
            "split": "train",
            "digest": images.digest(),
            "images": len(images),
        },
        hyper_parameters=as_record(hp),
        versions=versions("torch"),
        epochs_completed=0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if resume and (out / CONFIG).exists():
        config = _same_run(out, config)
    where = resolve_device(device)
    test = _test_images(chosen.data, data_root)
    asked = Probe(
        test, probe, every=probe_every, radius=probe_radius, sigma=hp.sigma, epochs=hp.epochs,
        batch_size=hp.batch_size, num_classes=config.num_classes, seed=seed, device=where,
    ) if probe else None  # fmt: skip
    record = RunRecord(out, probe=asked, tensorboard=tensorboard)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(
            config.arch,
            num_classes=config.num_classes,
            input_shape=config.input_shape,
            mean_sd=config.mean_sd,
        )
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, config)
    trainer = Trainer(
        folder=out,
        config=config,
        model=model.to(where),
        hp=hp,
        images=images,
        augment=info.augment if info else "none",
        evaluation=test.subset(select(len(test), 0, 1000, 1)) if test else None,
        seed=seed,
        device=where,
        progress=progress,
        after_epoch=record.after_epoch,
    )
    metrics = trainer.run(resume=resume)
    record.finish(model)
    return TrainResult(out, hp.epochs, metrics)


def _choose(recipe: str | None, data: str | None, arch: str | None, method: str | None, sigma: float | None) -> Recipe:
    """The recipe to start from; its name is empty where the values are our general defaults."""
    if recipe is not None:
        found = find_recipe(recipe)
        if method not in (None, found.hyper_parameters.method):
            raise BadInput(f"--method {method}: recipe {recipe} is for {found.hyper_parameters.method}")
        return Recipe(found.name, data or found.data, arch or found.arch, found.hyper_parameters, found.source)
    data, method = data or "digits", method or "smoothmix"
    data_info(data)  # BadInput for unknown names
    same = [r for r in recipes() if r.data == data and r.hyper_parameters.method == method]
    exact = [r for r in same if sigma is None or r.hyper_parameters.sigma == sigma]
    arch = arch or _DEFAULT_ARCH.get(data)
    if arch is None:
        raise BadInput(f"--data {data}: no default network for it; pass --arch")
    if sigma is None and data != "digits":
        raise BadInput("--sigma: missing (the noise level to train for, e.g. 0.5), or choose a --recipe")
    if exact:
        return Recipe(exact[0].name, data, arch, exact[0].hyper_parameters, exact[0].source)
    hp = same[0].hyper_parameters if same else HyperParameters(epochs=30, lr=0.05, schedule="one-cycle", m=2, eta=1.0)
    return Recipe("", data, arch, override(hp, method=method), "general defaults")


def _same_run(out: Path, config: RunConfig) -> RunConfig:
    """The stored configuration, if it is the one asked for; BadInput names the first difference."""
    stored = read_config(out)
    for name in ("arch", "num_classes", "input_shape", "seed", "sigma", "method"):
        if getattr(stored, name) != getattr(config, name):
            raise BadInput(
                f"--resume: {out} has {name} {getattr(stored, name)}, now asked for {getattr(config, name)}; "
                "use the same options, or another --out"
            )
    if stored.data.get("digest") != config.data["digest"]:
        raise BadInput(f"--resume: {out} was trained on other images (digest of {config.data['name']} differs)")
    changed = {
        name: (stored.hyper_parameters.get(name), value)
        for name, value in config.hyper_parameters.items()
        if stored.hyper_parameters.get(name) != value
    }
    if changed:
        name, (old, new) = next(iter(changed.items()))
        raise BadInput(f"--resume: {out} has {name} {old}, now asked for {new}; use the same options, or another --out")
    return stored


def _test_images(data: str, root: Path | str | None) -> ImageSet | None:
    """For the noisy accuracy of each epoch (up to 1,000 of them) and the probe; None where there is no test split."""
    if data.startswith("npz:") or (data.startswith("folder:") and not _has_test_folder(data)):
        return None
    try:
        return load_data(data, root=root, split="test")
    except BadInput:
        return None


def _has_test_folder(data: str) -> bool:
    path = Path(data.removeprefix("folder:"))
    return (path / "test").is_dir() or (path / "val").is_dir()
