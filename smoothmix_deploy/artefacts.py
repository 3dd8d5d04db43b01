"""What a user may point a command at: a run folder, an export folder, or an .onnx file of anybody's.

Resolves a path to the file that will run and what is known about it. Knows nothing about how to run it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadInput, CheckFailed
from .files import read_json, sha256_file

METADATA_KEY = "smoothmix_deploy"
"""The key of our JSON record in an ONNX file's metadata_props."""


@dataclass(frozen=True)
class Artefact:
    """One classifier on disk. Fields that a stranger's file does not state are None."""

    path: Path
    """As the user named it."""
    kind: str
    """"run" (safetensors + config) or "onnx"."""
    file: Path
    """The file that an engine loads."""
    sha256: str
    precision: str | None = None
    sigma: float | None = None
    class_names: list[str] | None = None
    weights_sha256: str | None = None
    max_batch: int | None = None
    data: dict[str, Any] | None = None
    """The data set it was trained on: {"name", "root"}."""

    @property
    def description(self) -> str:
        """For messages: what this is, and where."""
        return {"run": "the run folder", "onnx": "the ONNX file"}[self.kind] + f" {self.file}"

    def record(self) -> dict[str, Any]:
        """The part that manifests hold under "artefact"."""
        return {
            "name": self.path.name or str(self.path),
            "kind": self.kind,
            "sha256": self.sha256,
            "weights_sha256": self.weights_sha256,
            "precision": self.precision,
        }


def open_artefact(path: Path | str) -> Artefact:
    """Find out what `path` is. BadInput if it is nothing we run; CheckFailed if it differs from its own manifest."""
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if path.is_dir():
        if (path / "manifest.json").exists():
            return _open_export(path)
        if (path / "config.json").exists():
            return _open_run(path)
        raise BadInput(f"{path}: neither a run folder (config.json) nor an export folder (manifest.json)")
    if path.suffix == ".onnx":
        if (path.parent / "manifest.json").exists() and path.name == "model.onnx":
            return _open_export(path.parent)
        return _open_onnx(path)
    raise BadInput(f"{path}: not a run folder, an export folder or an .onnx file")


def _open_run(path: Path) -> Artefact:
    from .models.run_folder import WEIGHTS, read_config

    config = read_config(path)
    weights = path / WEIGHTS
    if not weights.exists():
        raise BadInput(f"{path}: {WEIGHTS} is missing (did training finish its first epoch? smx train --resume)")
    digest = sha256_file(weights)
    return Artefact(
        path=path,
        kind="run",
        file=weights,
        sha256=digest,
        precision="fp32",
        sigma=config.sigma,
        class_names=config.class_names,
        weights_sha256=digest,
        data=config.data,
    )


def _open_export(path: Path) -> Artefact:
    manifest = read_json(path / "manifest.json", "an export manifest")
    if manifest.get("kind") != "export":
        raise BadInput(f"{path / 'manifest.json'}: not an export manifest")
    try:
        name, entry = manifest["artefact"], manifest["files"][manifest["artefact"]]
        expected = entry["sha256"]
        file = path / name
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInput(f"{path / 'manifest.json'}: artefact {name!r} is not a file of this folder")
        artefact = Artefact(
            path=path,
            kind="onnx",
            file=file,
            sha256=expected,
            precision=manifest["precision"],
            sigma=manifest["sigma"],
            class_names=manifest["class_names"],
            weights_sha256=manifest["weights_sha256"],
            max_batch=manifest["max_batch"],
            data=manifest["data"],
        )
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path / 'manifest.json'}: incomplete export manifest ({error!s} is missing)") from None
    if not file.exists():
        raise BadInput(f"{file}: missing, though {path / 'manifest.json'} lists it; export again")
    found = sha256_file(file)
    if found != expected:
        raise CheckFailed(
            f"{file}: SHA-256 {found[:12]}... is not the {expected[:12]}... of its manifest: "
            "not the file that passed the parity gate; export again"
        )
    return artefact


def _open_onnx(path: Path) -> Artefact:
    """A loose ONNX file: what we wrote into it is trusted as a default (sigma, classes), never as a check."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise BadInput(
            f"{path}: not an ONNX model, or a damaged one ({type(error).__name__}: {_first_line(error)})"
        ) from None
    known: dict[str, Any] = {}
    for item in model.metadata_props:
        if item.key == METADATA_KEY:
            try:
                known = json.loads(item.value)
            except ValueError:
                raise BadInput(f"{path}: its {METADATA_KEY} metadata is not JSON") from None
    fields = ("precision", "sigma", "class_names", "weights_sha256", "data")
    return Artefact(
        path=path,
        kind="onnx",
        file=path,
        sha256=sha256_file(path),
        **{name: known.get(name) for name in fields},
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
