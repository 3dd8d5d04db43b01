"""What a user may point a command at: a run folder, an export folder or a file of one, or an .onnx file of anybody's.

Resolves a path to the file that will run and what is known about it. Knows nothing about how to run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import BadInput, CheckFailed
from .files import parse_json, read_json, sha256_file, sha256_files
from .onnx_reading import load_onnx
from .records import check_model_record, fits, problem

EXPORT_FORMAT_VERSION = 1
METADATA_KEY = "smoothmix_deploy"
"""The key of our JSON record in an ONNX file's metadata_props."""


_KINDS = {".onnx": "onnx", ".plan": "plan", ".xml": "openvino"}
_DESCRIPTIONS = {
    "run": "the run folder of", "onnx": "the ONNX file", "plan": "the TensorRT plan", "openvino": "the OpenVINO model",
}  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """One classifier on disk. Fields that a stranger's file does not state are None."""

    path: Path
    """As the user named it."""
    kind: str
    """"run" (safetensors + config), "onnx", "plan" (TensorRT) or "openvino"."""
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
    plan: dict[str, Any] | None = None
    """Of a plan: the TensorRT and the GPU it was built for (`exporting.plan_file.PlanFacts`)."""
    gated: bool | None = None
    """Whether the parity gate has passed it; False: it could not run yet. None: nobody says so (a loose file)."""

    @property
    def description(self) -> str:
        """For messages: what this is, and where."""
        return f"{_DESCRIPTIONS[self.kind]} {self.file}"

    @property
    def stranger(self) -> bool:
        """Whether engines try it in a child process first. Not what this process has built itself, for its parity gate;
        a manifest is no voucher: whoever wrote the file may have written that too."""
        return not (self.gated and self.described_by == self.file)

    @property
    def rebuild_command(self) -> str:
        """What makes a plan anew on the machine at hand, from the ONNX file that it was built from."""
        return f"smx export {self.file.with_name('model.onnx')} --format trt --out NEW_FOLDER"

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
    if path.suffix not in _KINDS or not path.is_file():
        raise BadInput(f"{path}: not a run folder, an export folder, or an .onnx, .plan or .xml file")
    folder = _export_folder_of(path)
    if folder is not None:
        return _open_export(folder, path)
    if path.suffix == ".onnx":
        return _open_onnx(path)
    what = "a plan is code for one GPU and TensorRT version" if path.suffix == ".plan" else "its weights lie elsewhere"
    raise BadInput(f"{path}: no manifest.json beside it lists it ({what}); name the export folder, or export again")


def _export_folder_of(path: Path) -> Path | None:
    """The export folder whose manifest lists `path`; None if there is none (looked for up to a Triton repository's depth)."""
    for folder in list(path.absolute().parents)[:4]:
        manifest = folder / "manifest.json"
        if manifest.is_file():
            files = read_json(manifest, "an export manifest").get("files")
            listed = isinstance(files, dict) and path.absolute().relative_to(folder).as_posix() in files
            return folder if listed else None
    return None


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


def _open_export(path: Path, asked: Path | None = None) -> Artefact:
    """The artefact of an export folder, or the file `asked` for, if its bytes are those of the manifest."""
    described_by = path / "manifest.json"
    manifest = read_json(described_by, "an export manifest")
    _check_manifest(manifest, described_by)
    name = manifest["artefact"] if asked is None else asked.absolute().relative_to(path.absolute()).as_posix()
    file = path / name
    kind = _KINDS.get(file.suffix)
    if kind is None:
        raise BadInput(f"{described_by}: artefact {name!r} is no .onnx, .plan or .xml file")
    parts = [file, file.with_suffix(".bin")] if kind == "openvino" else [file]
    for part in parts:
        _check_digest(part, manifest["files"].get(part.relative_to(path).as_posix()), described_by)
    if kind == "onnx":
        load_onnx(file)
    fields = ("precision", "sigma", "class_names", "weights_sha256", "max_batch", "data")
    parity = manifest.get("parity")
    return Artefact(
        path=path if asked is None else asked, kind=kind, file=file, sha256=sha256_files(parts),
        described_by=described_by, plan=manifest.get("plan") if kind == "plan" else None,
        gated=bool(isinstance(parity, dict) and parity.get("passed")),
        **{name: manifest[name] for name in fields},
    )  # fmt: skip


def _check_manifest(manifest: dict[str, Any], described_by: Path) -> None:
    """BadInput unless it is an export manifest that names a file of its own folder."""
    if manifest.get("kind") != "export" or manifest.get("format_version") != EXPORT_FORMAT_VERSION:
        raise BadInput(f"{described_by}: not an export manifest of format version {EXPORT_FORMAT_VERSION}")
    types = {"artefact": "str", "files": "dict", "precision": "str", "weights_sha256": "str | None",
             "max_batch": "int | None"}  # fmt: skip
    wrong = problem(manifest, types)
    if wrong is None:
        parts = PurePosixPath(manifest["artefact"]).parts
        if not parts or parts[0] == "/" or ".." in parts:
            wrong = f"artefact {manifest['artefact']!r} is not a file of this folder"
    if wrong is None and manifest["max_batch"] is not None and manifest["max_batch"] < 1:
        wrong = f'"max_batch" is {manifest["max_batch"]}, expected at least 1'
    if wrong is None and not fits(manifest.get("plan"), "dict | None"):
        wrong = '"plan" is no JSON object'
    if wrong is not None:
        raise BadInput(f"{described_by}: {wrong}")
    check_model_record(manifest, str(described_by))


def _check_digest(file: Path, entry: Any, described_by: Path) -> None:
    if not (isinstance(entry, dict) and isinstance(entry.get("sha256"), str)):
        raise BadInput(f'{described_by}: no SHA-256 of {file.name} under "files"')
    if not file.is_file():  # neither a pipe nor a device
        raise BadInput(f"{file}: missing, though {described_by} lists it; export again")
    found, expected = sha256_file(file), entry["sha256"]
    if found != expected:
        raise CheckFailed(
            f"{file}: SHA-256 {found[:12]}... is not the {expected[:12]}... of its manifest: "
            "not the file that passed the parity gate; export again"
        )


def _open_onnx(path: Path) -> Artefact:
    """A loose ONNX file: what we wrote into it is trusted as a default (sigma, classes), never as a check."""
    known: dict[str, Any] = {}
    for item in load_onnx(path).metadata_props:
        if item.key == METADATA_KEY:
            try:
                known = parse_json(item.value)
            except ValueError:
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
