"""`smx import`: published checkpoints of the reference family, turned into run folders.

A dict with `arch` and `state_dict`, saved by torch.save; keys `1.*` of a Sequential behind a normalisation layer `0`,
with or without DataParallel's `module.`. Unpickled with weights_only=True: code in a file is refused, not run.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..data import data_info, load_data, stored_spec
from ..errors import BadInput
from ..files import sha256_file
from ..messages import first_line
from ..versions import versions
from .build import build_model, canonical_arch, is_code
from .run_folder import RunConfig, check_folder, save_weights, write_config


@dataclass(frozen=True)
class ImportResult:
    """Where the run folder is, and what was imported."""

    path: Path
    arch: str
    parameters: int


def import_checkpoint(
    checkpoint: Path | str,
    *,
    data: str,
    sigma: float,
    out: Path | str,
    arch: str | None = None,
    data_root: Path | str | None = None,
) -> ImportResult:
    """Make a run folder of a published checkpoint.

    `arch` defaults to the one that the checkpoint names. `data` fixes classes, image shape and normalisation. Raises
    BadInput: no such file, not such a checkpoint, code in the pickle, weights that do not fit.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if not 0 < sigma < math.inf:
        raise BadInput(f"--sigma {sigma}: must be positive and finite")
    check_folder(out)
    content = _load(checkpoint)
    named = str(content.get("arch") or "")
    if not arch and is_code(named):  # a file must not choose code to import and call
        raise BadInput(f"{checkpoint}: names the callable {named} as its arch; pass --arch {named} if you trust it")
    arch = canonical_arch(arch or named)
    if not arch:
        raise BadInput(f"{checkpoint}: names no arch; pass --arch")
    info = data_info(data)
    if info is None:
        images = load_data(data, root=data_root)
        shape, classes, mean_sd = images.shape, images.num_classes, None
    else:
        shape, classes, mean_sd = info.shape, info.num_classes, info.mean_sd
    model = build_model(arch, num_classes=classes, input_shape=shape, mean_sd=mean_sd)
    try:
        model.net.load_state_dict(_network_weights(checkpoint, content["state_dict"]))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"{checkpoint}: its weights do not fit --arch {arch} with {classes} classes ({reason})"
        ) from None
    # After the copy: a float64 or complex value may be finite in the file and not in the network.
    for name, tensor in model.net.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadInput(f"{checkpoint}: {name} has NaN or infinite weights")
    config = RunConfig(
        arch=arch,
        num_classes=classes,
        class_names=None,
        input_shape=shape,
        mean_sd=mean_sd,
        sigma=sigma,
        method="imported",
        recipe=None,
        seed=None,
        data={**stored_spec(data, data_root), "split": "train", "digest": None},
        hyper_parameters={"imported_from": checkpoint.name, "sha256": sha256_file(checkpoint)},
        versions=versions("torch"),
        epochs_completed=content.get("epoch") if isinstance(content.get("epoch"), int) else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    out.mkdir(parents=True, exist_ok=True)
    save_weights(out, model)
    write_config(out, config)
    return ImportResult(out, arch, sum(p.numel() for p in model.parameters()))


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except pickle.UnpicklingError:  # torch's message advises to load it all the same
        raise BadInput(f"{path}: refused: not a plain checkpoint of tensors, or damaged; it may contain code") from None
    except Exception as error:  # a truncated or foreign file, whatever torch's reader makes of it
        reason = first_line(error)
        raise BadInput(f"{path}: not a readable PyTorch checkpoint ({reason})") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise BadInput(f'{path}: expected a dict with "arch" and "state_dict", as the reference implementations save')
    return content


def _network_weights(path: Path, state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network's own keys: `1.module.conv1.weight`, `module.1.conv1.weight` or `conv1.weight` -> `conv1.weight`."""
    stripped = {str(key).removeprefix("module."): value for key, value in state.items()}
    behind_normalisation = {k: v for k, v in stripped.items() if k.startswith("1.")}
    if behind_normalisation:
        stripped = {k.removeprefix("1."): v for k, v in behind_normalisation.items()}
    weights = {k.removeprefix("module."): v for k, v in stripped.items()}
    bad = [k for k, v in weights.items() if not isinstance(v, torch.Tensor)]
    if bad or not weights:
        raise BadInput(f"{path}: state_dict entry {bad[0] if bad else '(none)'} is not a tensor")
    return weights
