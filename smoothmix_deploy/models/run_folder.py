"""Run folders: `config.json` + `model.safetensors`, everything needed to rebuild and to know a model.

The one place that writes and reads them. Imports torch only to load or save weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..files import atomic_path, check_writable, is_temporary, read_json, write_json
from ..records import MOST_CLASSES, MOST_NUMBERS, check_model_record, fits, problem

if TYPE_CHECKING:
    from .build import BaseClassifier

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
METRICS = "metrics.jsonl"
PLOT = "training.png"
CARD = "MODEL_CARD.md"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunConfig:
    """What a base classifier is and where it comes from."""

    arch: str
    num_classes: int
    class_names: list[str] | None
    input_shape: tuple[int, int, int]
    """C, H, W."""
    mean_sd: tuple[Sequence[float], Sequence[float]] | None
    """Per-channel normalisation in the first layer; None: none."""
    sigma: float
    """Noise level of training, in [0, 1] pixel units."""
    method: str
    recipe: str | None
    seed: int | None
    data: dict[str, Any]
    """name, root, split, digest of the training set."""
    versions: dict[str, str]
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    epochs_completed: int | None = None
    created: str = ""
    kind: str = "run"
    format_version: int = FORMAT_VERSION


def check_folder(out: Path, *, resume: bool = False) -> None:
    """BadInput unless `out` can become a run folder, or (with `resume`) is one already."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: is a file; choose a folder")
    if not out.exists():
        check_writable(out, "--out")
    elif (out / CONFIG).exists():
        if not resume:
            raise BadInput(f"--out {out}: already a run folder; go on with smx train --resume, or choose another")
    elif not all(is_temporary(path) for path in out.iterdir()):
        raise BadInput(f"--out {out}: not empty and not a run folder; choose another")


def write_config(folder: Path, config: RunConfig) -> None:
    """Write config.json atomically."""
    write_json(folder / CONFIG, asdict(config))


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder. BadInput if there is none or it is malformed."""
    path = folder / CONFIG
    values = read_json(path, "a run folder's configuration")
    if values.get("kind") != "run" or values.get("format_version") != FORMAT_VERSION:
        raise BadInput(f"{path}: not a run configuration of format version {FORMAT_VERSION}")
    wrong = problem(values, _TYPES)
    if wrong is not None:
        raise BadInput(f"{path}: {wrong}")
    check_model_record(values, str(path), values["num_classes"])
    shape, mean_sd = values["input_shape"], values["mean_sd"]
    plausible = len(shape) == 3 and all(fits(size, "int") and size > 0 for size in shape)
    if not plausible or math.prod(shape) > MOST_NUMBERS or not 2 <= values["num_classes"] <= MOST_CLASSES:
        raise BadInput(f"{path}: impossible input_shape {shape} or num_classes {values['num_classes']}")
    if mean_sd is not None and not (len(mean_sd) == 2 and all(_is_per_channel(part, shape[0]) for part in mean_sd)):
        raise BadInput(f'{path}: "mean_sd" is {mean_sd}, expected means and deviations of {shape[0]} channels')
    return RunConfig(**{**{item.name: values[item.name] for item in fields(RunConfig)}, "input_shape": tuple(shape)})


_TYPES = {
    "arch": "str", "num_classes": "int", "input_shape": "list", "mean_sd": "list | None", "sigma": "float",
    "method": "str", "recipe": "str | None", "seed": "int | None", "data": "dict", "versions": "dict",
    "hyper_parameters": "dict", "epochs_completed": "int | None", "created": "str",
}  # fmt: skip


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, an epoch each; [] where there is none (imported models). BadInput names a bad line."""
    path = folder / METRICS
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        wrong = (
            "not a JSON object" if not isinstance(record, dict) else problem(record, {"epoch": "int", "lr": "float"})
        )
        if wrong is None and record.get("probe") is not None:
            wrong = problem(record, {"probe": "dict"}) or problem(record["probe"], _PROBE)
        if wrong is not None:
            raise BadInput(f"{path}, line {number}: {wrong}")
        found.append(record)
    return found


_PROBE = {"certified": "float", "radius": "float", "images": "int", "n": "int", "alpha": "float"}


def _is_per_channel(part: Any, channels: int) -> bool:
    return isinstance(part, list) and len(part) == channels and all(fits(value, "float") for value in part)


def save_weights(folder: Path, model: BaseClassifier) -> None:
    """Write model.safetensors atomically. OSError if it cannot be written."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(state))  # save_file leaves a temporary file of its own behind when it is killed


def load_model(folder: Path, config: RunConfig) -> BaseClassifier:
    """The base classifier on the CPU with its trained weights. BadInput: damaged, missing or foreign weights, NaN."""
    import torch
    from safetensors import SafetensorError, safe_open

    from .build import build_model

    path = folder / WEIGHTS
    model = build_model(
        config.arch, num_classes=config.num_classes, input_shape=config.input_shape, mean_sd=config.mean_sd,
        named_by=folder / CONFIG,
    )  # fmt: skip
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        with safe_open(str(path), "pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            wrong = next((name for name in {**expected, **found} if expected.get(name) != found.get(name)), None)
            if wrong is not None:  # before anything is read: a stranger's tensors may have any size
                raise BadInput(
                    f"{path}: its weights do not fit arch {config.arch} "
                    f"({wrong} has shape {found.get(wrong, 'none')}, expected {expected.get(wrong, 'none')})"
                )
            state = {name: file.get_tensor(name) for name in expected}
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error})") from None
    model.load_state_dict(state)
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise BadInput(f"{path}: {bad[0]} has NaN or infinite weights; this model cannot be certified")
    return model
