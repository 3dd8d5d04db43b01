"""What a user may point a command at: a run folder, an export folder, or an .onnx file of anybody's.

Resolves a path to the file that will run and what is known about it. Knows nothing about how to run it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadInput, CheckFailed
from .files import read_json, sha256_file
from .records import check_model_record, problem

EXPORT_FORMAT_VERSION = 1
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
    described_by: Path
    """The file that says what is known of it."""
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
    from .models.run_folder import CONFIG, WEIGHTS, read_config

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
        described_by=path / CONFIG,
        precision="fp32",
        sigma=config.sigma,
        class_names=config.class_names,
        weights_sha256=digest,
        data=config.data,
    )


def _open_export(path: Path) -> Artefact:
    described_by = path / "manifest.json"
    manifest = read_json(described_by, "an export manifest")
    if manifest.get("kind") != "export" or manifest.get("format_version") != EXPORT_FORMAT_VERSION:
        raise BadInput(f"{described_by}: not an export manifest of format version {EXPORT_FORMAT_VERSION}")
    types = {"artefact": "str", "files": "dict", "precision": "str", "weights_sha256": "str", "max_batch": "int | None"}
    wrong = problem(manifest, types)
    if wrong is None and Path(manifest["artefact"]).name != manifest["artefact"]:
        wrong = f"artefact {manifest['artefact']!r} is not a file of this folder"
    entry = manifest["files"].get(manifest["artefact"]) if wrong is None else None
    if wrong is None and not (isinstance(entry, dict) and isinstance(entry.get("sha256"), str)):
        wrong = f'no SHA-256 of {manifest["artefact"]} under "files"'
    if wrong is None and manifest["max_batch"] is not None and manifest["max_batch"] < 1:
        wrong = f'"max_batch" is {manifest["max_batch"]}, expected at least 1'
    if wrong is not None:
        raise BadInput(f"{described_by}: {wrong}")
    check_model_record(manifest, str(described_by))
    file = path / manifest["artefact"]
    if not file.exists():
        raise BadInput(f"{file}: missing, though {described_by} lists it; export again")
    found, expected = sha256_file(file), entry["sha256"] if entry else ""
    if found != expected:
        raise CheckFailed(
            f"{file}: SHA-256 {found[:12]}... is not the {expected[:12]}... of its manifest: "
            "not the file that passed the parity gate; export again"
        )
    _load_onnx(file)
    fields = ("precision", "sigma", "class_names", "weights_sha256", "max_batch", "data")
    return Artefact(
        path=path, kind="onnx", file=file, sha256=found, described_by=described_by,
        **{name: manifest[name] for name in fields},
    )  # fmt: skip


def _open_onnx(path: Path) -> Artefact:
    """A loose ONNX file: what we wrote into it is trusted as a default (sigma, classes), never as a check."""
    known: dict[str, Any] = {}
    for item in _load_onnx(path).metadata_props:
        if item.key == METADATA_KEY:
            try:
                known = json.loads(item.value)
            except (ValueError, RecursionError):
                raise BadInput(f"{path}: its {METADATA_KEY} metadata is not JSON") from None
    if not isinstance(known, dict):
        raise BadInput(f"{path}: its {METADATA_KEY} metadata is not a JSON object")
    fields = ("precision", "sigma", "class_names", "weights_sha256", "data")
    values = {name: known.get(name) for name in fields}
    check_model_record(values, f"{path}: its {METADATA_KEY} metadata")
    wrong = problem(values, {"precision": "str | None", "weights_sha256": "str | None"})
    if wrong is not None:
        raise BadInput(f"{path}: its {METADATA_KEY} metadata: {wrong}")
    return Artefact(path=path, kind="onnx", file=path, sha256=sha256_file(path), described_by=path, **values)


def _load_onnx(path: Path) -> Any:
    """The parsed model; BadInput if it is none, or if its weights lie in another file (no digest would cover them)."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise BadInput(
            f"{path}: not an ONNX model, or a damaged one ({type(error).__name__}: {_first_line(error)})"
        ) from None
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")
            raise BadInput(
                f"{path}: its weights lie outside the file ({location}), so no digest would cover them; "
                "save it with all weights inside"
            )
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    """All stored tensors of a graph and its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
