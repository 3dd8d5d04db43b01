"""Run folders: `config.json` + `model.safetensors`, everything needed to rebuild and to know a model.

The one place that writes and reads them. Imports torch only to load or save weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from .build import BaseClassifier

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
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


def write_config(folder: Path, config: RunConfig) -> None:
    """Write config.json atomically."""
    write_json(folder / CONFIG, asdict(config))


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder. BadInput if there is none or it is malformed."""
    path = folder / CONFIG
    values = read_json(path, "a run folder's configuration")
    if values.get("kind") != "run" or values.get("format_version") != FORMAT_VERSION:
        raise BadInput(f"{path}: not a run configuration of format version {FORMAT_VERSION}")
    try:
        values = {item.name: values[item.name] for item in fields(RunConfig)}
        values["input_shape"] = tuple(int(size) for size in values["input_shape"])
        config = RunConfig(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: incomplete or malformed ({error})") from None
    if len(config.input_shape) != 3 or not isinstance(config.num_classes, int) or config.num_classes < 2:
        raise BadInput(f"{path}: input_shape {config.input_shape}, num_classes {config.num_classes}: malformed")
    return config


def save_weights(folder: Path, model: BaseClassifier) -> None:
    """Write model.safetensors atomically."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, str(temporary))


def load_model(folder: Path, config: RunConfig) -> BaseClassifier:
    """The base classifier on the CPU with its trained weights. BadInput: damaged, missing or foreign weights, NaN."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .build import build_model

    path = folder / WEIGHTS
    model = build_model(
        config.arch, num_classes=config.num_classes, input_shape=config.input_shape, mean_sd=config.mean_sd
    )
    try:
        state = load_file(str(path))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error})") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{path}: its weights do not fit arch {config.arch} ({reason})") from None
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise BadInput(f"{path}: {bad[0]} has NaN or infinite weights; this model cannot be certified")
    return model
