"""`smx train`: from a data set and a recipe to a run folder.

Writes `config.json`, `model.safetensors`, `metrics.jsonl` (a line an epoch), at the end `training.png` and `MODEL_CARD.md`,
and `state.pt`, from which `resume` goes on exactly: order, augmentation and noise are functions of (seed, epoch, step),
so on the CPU a resumed run's weights are those of an uninterrupted one, bit for bit. Under torchrun the
processes divide every mini-batch among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..data import ImageSet, data_info, load_data, select, stored_spec
from ..devices import resolve_device
from ..errors import BadInput
from ..models.build import BaseClassifier, build_model, canonical_arch
from ..models.run_folder import CONFIG, RunConfig, check_folder, read_config, write_config
from ..progress import Progress, silent
from ..versions import versions
from .batches import decoder_threads
from .distributed import Processes, joined, own_device, share_batch_norm
from .launch import Launch, launched
from .loop import SAVE_EVERY_SECONDS, Trainer, nothing_more
from .methods import step_function
from .recipes import HyperParameters, Recipe, as_record, find_recipe, general, override, recipes
from .record import Watch, make_record
from .state import sole_run

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
    accumulate: int = 1,
    save_every: float = SAVE_EVERY_SECONDS,
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
    `recipes.HyperParameters` for the names. `start`, `stop`, `skip` choose training images. `accumulate` computes each
    optimiser step in so many parts, which saves memory and changes nothing but rounding (BatchNorm aside); every
    `save_every` seconds the state is saved. `probe`: the certified accuracy at `probe_radius` (None: sigma) on so many
    test images, every `probe_every` epochs, into metrics.jsonl. Raises BadInput, CheckFailed (the loss is not finite),
    Unavailable (no TensorBoard), Stopped (interrupted; resumable).
    """
    out = Path(out)
    _check_options(seed, accumulate, save_every)
    chosen = _choose(recipe, data, arch, method, sigma)
    hp = override(chosen.hyper_parameters, sigma=sigma, **hyper_parameters)
    step_function(hp.method)  # BadInput for unknown methods, before anything is written
    launch = launched()
    where = own_device(resolve_device(device), launch)
    parts = accumulate * launch.world_size
    if hp.batch_size // hp.steps_a_batch < parts:
        raise BadInput(
            f"--accumulate {accumulate} x {launch.world_size} processes: more parts than the "
            f"{hp.batch_size // hp.steps_a_batch} images of an optimiser step (--batch-size {hp.batch_size}, --m {hp.m})"
        )
    with joined(launch, where) as processes, ExitStack() as held:
        processes.lead(lambda: check_folder(out, resume=resume))
        images = _training_images(processes, launch, chosen.data, data_root, download, (start, stop, skip))
        if min(hp.batch_size, len(images)) < hp.m or len(images) < 2:
            raise BadInput(
                f"--m {hp.m}: needs at least {max(hp.m, 2)} training images, --data {chosen.data} has {len(images)}"
            )
        config = _config(chosen, hp, images, data_root, seed)
        config = processes.lead(lambda: _same_run(out, config) if resume and (out / CONFIG).exists() else config)
        model = _fresh_model(config, seed)
        test = processes.together(lambda: _test_images(chosen.data, data_root) if processes.leads else None)
        watch = Watch(probe, probe_every, probe_radius, tensorboard)
        rows = hp.batch_size // parts
        record = processes.together(
            lambda: make_record(out, watch, test, config, hp, rows, where) if processes.leads else None
        )
        processes.together(lambda: held.enter_context(_opened(out, config)) if processes.leads else None)
        info = data_info(chosen.data)
        trainer = Trainer(
            folder=out,
            config=config,
            model=share_batch_norm(model, where, launch.world_size).to(where),
            hp=hp,
            images=images,
            augment=info.augment if info else "none",
            evaluation=test.subset(select(len(test), 0, 1000, 1)) if test else None,
            seed=seed,
            device=where,
            progress=progress if processes.leads else silent,
            processes=processes,
            accumulate=accumulate,
            save_every=save_every,
            decoders=decoder_threads(launch.local_world_size),
            after_epoch=record.after_epoch if record else nothing_more,
        )
        metrics = trainer.run(resume=resume)
        processes.together(lambda: record.finish(trainer.model) if record else None)
    return TrainResult(out, hp.epochs, metrics)


def _check_options(seed: int, accumulate: int, save_every: float) -> None:
    for option, value, ok, wanted in (
        ("--seed", seed, 0 <= seed < 2**63, "in 0 .. 2^63 - 1"),
        ("--accumulate", accumulate, accumulate >= 1, "at least 1"),
        ("--save-every", save_every, 0 <= save_every < math.inf, "a number of seconds, at least 0"),
    ):
        if not ok:
            raise BadInput(f"{option} {value}: must be {wanted}")


def _training_images(
    processes: Processes,
    launch: Launch,
    data: str,
    root: Path | str | None,
    download: bool,
    selection: tuple[int | None, int | None, int | None],
) -> ImageSet:
    """The images, the same in every process (BadInput); one process a machine downloads, the others wait for it."""

    def load(download: bool) -> ImageSet:
        images = load_data(data, root=root, split="train", download=download)
        return images if selection == (None, None, None) else images.subset(select(len(images), *selection))

    first = processes.together(lambda: load(download) if launch.local_rank == 0 else None)
    images = processes.together(lambda: first if first is not None else load(False))
    digests = processes.gather(images.digest())
    if len(set(digests)) > 1:
        other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
        raise BadInput(f"--data {data}: process {other} has other images than process 0; give all the same --data-root")
    return images


def _config(chosen: Recipe, hp: HyperParameters, images: ImageSet, root: Path | str | None, seed: int) -> RunConfig:
    info = data_info(chosen.data)
    return RunConfig(
        arch=canonical_arch(chosen.arch),
        num_classes=images.num_classes,
        class_names=images.class_names,
        input_shape=images.shape,
        mean_sd=info.mean_sd if info else None,
        sigma=hp.sigma,
        method=hp.method,
        recipe=chosen.name or None,
        seed=seed,
        data={**stored_spec(chosen.data, root), "split": "train", "digest": images.digest(), "images": len(images)},
        hyper_parameters=as_record(hp),
        versions=versions("torch"),
        epochs_completed=0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _fresh_model(config: RunConfig, seed: int) -> BaseClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(
            config.arch, num_classes=config.num_classes, input_shape=config.input_shape, mean_sd=config.mean_sd
        )


@contextmanager
def _opened(out: Path, config: RunConfig) -> Iterator[None]:
    """The run folder, ours alone, with the configuration in it."""
    out.mkdir(parents=True, exist_ok=True)
    with sole_run(out):
        write_config(out, config)
        yield


def _choose(recipe: str | None, data: str | None, arch: str | None, method: str | None, sigma: float | None) -> Recipe:
    """The recipe to start from; its name is empty where the values are our general defaults."""
    if recipe is not None:
        found = find_recipe(recipe)
        if method not in (None, found.hyper_parameters.method):
            raise BadInput(f"--method {method}: recipe {recipe} is for {found.hyper_parameters.method}")
        return Recipe(found.name, data or found.data, arch or found.arch, found.hyper_parameters, found.source)
    data, method = data or "digits", method or "smoothmix"
    step_function(method)  # BadInput for unknown names
    data_info(data)
    same = [r for r in recipes() if r.data == data and r.hyper_parameters.method == method]
    exact = [r for r in same if sigma is None or r.hyper_parameters.sigma == sigma]
    arch = arch or _DEFAULT_ARCH.get(data)
    if arch is None:
        raise BadInput(f"--data {data}: no default network for it; pass --arch")
    if sigma is None and data != "digits":
        raise BadInput("--sigma: missing (the noise level to train for, e.g. 0.5), or choose a --recipe")
    if exact:
        return Recipe(exact[0].name, data, arch, exact[0].hyper_parameters, exact[0].source)
    return Recipe("", data, arch, same[0].hyper_parameters if same else general(method), "general defaults")


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
