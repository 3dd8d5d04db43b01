"""`smx predict`: what the smoothed classifier answers for a few images, and how far the answer is proved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..artefacts import open_artefact
from ..data import ImageSet, InMemorySet, load_data, select
from ..data.image_set import image_to_array, open_image
from ..engines import Engine, open_engine
from ..errors import BadInput
from ..noise.gaussian import key_from_seed, random_key
from ..noise.source import check_name
from ..progress import Progress, silent
from ..rules import parameters_from_options
from ..statistics.bounds import ABSTAIN
from .sampler import run
from .scheduler import ImageJob, Scheduler
from .self_test import self_test
from .settings import Note, make_checked_rule, noise_parameters, resolve_sigma


@dataclass(frozen=True)
class Prediction:
    """`name` is a file, or an index of a data set. `class_name` None: abstains. `label` None: unknown."""

    name: str
    prediction: int
    class_name: str | None
    radius: float
    p_lower: float
    label: int | None


def predict(
    artefact: Path | str,
    images: Sequence[Path | str] = (),
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
    n: int = 10_000,
    n0: int = 100,
    alpha: float = 0.001,
    rule: str = "fixed",
    radius: float | None = None,
    grid: float | None = None,
    tolerance: float | None = None,
    noise: str = "gaussian",
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int | None = None,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> list[Prediction]:
    """Smoothed predictions with radii, for image files or for images of a data set.

    Abstains (-1) where the votes prove nothing at error `alpha`. Raises as `certify` does.
    """
    opened = open_artefact(artefact)
    sigma = resolve_sigma(sigma, opened, note)
    check_name(noise)
    parameters = parameters_from_options(rule, radius=radius, grid=grid, tolerance=tolerance)
    if bool(images) == bool(data):
        raise BadInput("name image files, or a data set with --data (one of the two)")
    runner = open_engine(opened, engine, batch_size=batch_size, device=device, threads=threads)
    parameters |= noise_parameters(noise, sigma, runner.info.input_shape)
    stopping = make_checked_rule(rule, parameters, sigma, n, n0, alpha, note)
    if images:
        chosen_set = _from_files([Path(path) for path in images], runner)
        indices, names = range(len(chosen_set)), [str(path) for path in images]
    else:
        assert data is not None
        chosen_set = load_data(data, root=data_root, split=split, download=download)
        if chosen_set.shape != runner.info.input_shape:
            raise BadInput(f"--data {data}: images are {chosen_set.shape}, the model takes {runner.info.input_shape}")
        indices = select(len(chosen_set), start, stop, skip)
        names = [str(i) for i in range(len(chosen_set))]
    key = random_key() if seed is None else key_from_seed(seed)
    self_test(runner, chosen_set, indices, sigma=sigma, key=key, noise=noise)
    class_names = opened.class_names or [str(k) for k in range(runner.info.num_classes)]
    predictions: list[Prediction] = []

    def release(job: ImageJob) -> None:
        assert job.verdict is not None
        verdict = job.verdict
        predictions.append(
            Prediction(
                names[job.index],
                verdict.prediction,
                None if verdict.prediction == ABSTAIN else class_names[verdict.prediction],
                verdict.radius,
                verdict.p_lower,
                None if images else int(chosen_set.labels[job.index]),
            )
        )

    def after_batch(_: int) -> None:
        scheduler.release(release)
        progress("predicting", len(predictions) + scheduler.share_done(), len(indices), "")

    scheduler = Scheduler(indices, stopping, n0, runner.info.num_classes)
    run(runner, chosen_set, scheduler, sigma=sigma, key=key, noise=noise, after_batch=after_batch, compiled=False)
    scheduler.release(release)
    return predictions


def _from_files(paths: list[Path], engine: Engine) -> ImageSet:
    """Image files of exactly the model's size; converted to its number of channels."""
    shape = engine.info.input_shape
    x_NCHW = np.stack([image_to_array(open_image(path), shape, path) for path in paths])
    x_NHWC = np.ascontiguousarray(np.moveaxis(x_NCHW, 1, 3))
    names = [str(k) for k in range(engine.info.num_classes)]
    return InMemorySet("files", "test", x_NHWC, np.zeros(len(paths), np.int64), names)
