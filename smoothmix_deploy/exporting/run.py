"""`smx export`: builds an artefact, lets it through the parity gate, and only then gives it its name.

The artefact and its manifest appear in the output folder together, or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..artefacts import EXPORT_FORMAT_VERSION, Artefact, open_artefact
from ..engines import open_engine
from ..errors import BadInput, CheckFailed
from ..files import check_writable, read_json, sha256_file, write_json
from ..models.run_folder import RunConfig, load_model, read_config
from ..noise.gaussian import key_from_seed, random_key
from ..progress import Progress, silent
from ..statistics.bounds import clopper_pearson_upper
from ..versions import versions
from .inputs import parity_images
from .onnx_file import write_onnx
from .parity import CONFIDENCE, ParityReport, check_parity

FORMATS = ("onnx",)
PRECISIONS = ("fp32",)
MANIFEST = "manifest.json"
ONNX_NAME = "model.onnx"


@dataclass(frozen=True)
class ExportResult:
    """The export folder, its artefact's digest, and what the gate saw."""

    path: Path
    artefact: Path
    sha256: str
    parity: ParityReport


def export(
    run: Path | str,
    *,
    out: Path | str,
    format: str = "onnx",
    precision: str = "fp32",
    max_batch: int | None = None,
    max_disagreement: float = 0.01,
    parity_samples: int = 2048,
    data: str | None = None,
    data_root: Path | str | None = None,
    download: bool = False,
    seed: int | None = None,
    progress: Progress = silent,
) -> ExportResult:
    """Export the run folder `run` into the folder `out`.

    Raises BadInput, CheckFailed (parity: nothing is left in `out`), Unavailable (no engine to check the artefact
    with: it fails closed). An earlier export in `out` is removed first, so that a failure never leaves an old
    artefact in the new one's place.
    """
    run, out = Path(run), Path(out)
    _check_arguments(format, precision, max_batch, max_disagreement, parity_samples)
    source = open_artefact(run)
    if source.kind != "run":
        raise BadInput(f"{run}: smx export takes a run folder of smx train or smx import")
    config = read_config(run)
    _check_folder(out)
    images, described = parity_images(config, data, data_root, download)
    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        progress("exporting", 0, 2, "building model.onnx")
        manifest = _build(source, config, work, precision, max_batch)
        progress("exporting", 1, 2, f"comparing {parity_samples} votes")
        reference = open_engine(source, "torch", device="cpu")
        candidate = open_engine(_unchecked(work, source, precision, max_batch))
        parity = check_parity(
            reference,
            candidate,
            images,
            described,
            sigma=config.sigma,
            samples=parity_samples,
            max_disagreement=max_disagreement,
            key=random_key() if seed is None else key_from_seed(seed),
        )
        if not parity.passed:
            raise CheckFailed(
                f"parity gate: {parity.summary}; the artefact does not behave like {run} and was not written"
            )
        manifest["parity"] = {**asdict(parity), "engine": candidate.info.record()}
        write_json(work / MANIFEST, manifest)
        work.chmod(0o755)
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress("exporting", 2, 2, "done")
    return ExportResult(out, out / manifest["artefact"], manifest["files"][manifest["artefact"]]["sha256"], parity)


def _check_arguments(
    format: str, precision: str, max_batch: int | None, max_disagreement: float, parity_samples: int
) -> None:
    if format not in FORMATS:
        raise BadInput(f"--format {format}: this version exports {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise BadInput(f"--precision {precision}: this version exports {', '.join(PRECISIONS)}")
    if max_batch is not None and max_batch < 1:
        raise BadInput(f"--max-batch {max_batch}: must be at least 1")
    if not 0 <= max_disagreement < 1:
        raise BadInput(f"--max-disagreement {max_disagreement}: must lie in [0, 1), e.g. 0.01")
    if parity_samples < 1:
        raise BadInput(f"--parity-samples {parity_samples}: must be at least 1")
    best = clopper_pearson_upper(0, parity_samples, 1 - CONFIDENCE)
    if best > max_disagreement:
        raise BadInput(
            f"--parity-samples {parity_samples}: too few for --max-disagreement {max_disagreement:g}: even without any "
            f"difference they bound the rate by {best:.3g} only"
        )


def _check_folder(out: Path) -> None:
    """BadInput unless `out` is absent, empty, or an earlier export and nothing else."""
    if not out.exists():
        check_writable(out, "--out")
        return
    if not out.is_dir():
        raise BadInput(f"--out {out}: is a file; choose a folder")
    present = {path.name for path in out.iterdir()}
    if present and MANIFEST not in present:
        raise BadInput(f"--out {out}: not empty and not an earlier export; choose another")
    if present:
        kind = read_json(out / MANIFEST, "an export manifest").get("kind")
        foreign = present - {MANIFEST, ONNX_NAME}
        if kind != "export" or foreign:
            raise BadInput(
                f"--out {out}: holds files of somebody else ({', '.join(sorted(foreign)) or MANIFEST}); choose another"
            )


def _build(source: Artefact, config: RunConfig, work: Path, precision: str, max_batch: int | None) -> dict[str, Any]:
    """Write the artefact into `work`; its manifest, without the parity report."""
    model = load_model(source.path, config)
    name = ONNX_NAME
    metadata = {
        "precision": precision,
        "sigma": config.sigma,
        "class_names": config.class_names,
        "weights_sha256": source.weights_sha256,
        "arch": config.arch,
        "method": config.method,
    }
    facts = write_onnx(model, config.input_shape, work / name, metadata)
    return {
        "kind": "export",
        "format_version": EXPORT_FORMAT_VERSION,
        "format": "onnx",
        "artefact": name,
        "files": {name: {"sha256": sha256_file(work / name), "bytes": (work / name).stat().st_size}},
        **metadata,
        "data": {key: config.data.get(key) for key in ("name", "root")},
        "input": {"name": facts.input_name, "shape": ["batch", *config.input_shape], "dtype": "float32"},
        "output": {"name": facts.output_name, "shape": ["batch", config.num_classes], "dtype": "float32"},
        "normalisation": {"in_graph": True, "mean_sd": config.mean_sd},
        "opset": facts.opset,
        "max_batch": max_batch,
        "versions": versions("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _unchecked(work: Path, source: Artefact, precision: str, max_batch: int | None) -> Artefact:
    """The new artefact, before it has a manifest."""
    file = work / ONNX_NAME
    return Artefact(
        path=work,
        kind="onnx",
        file=file,
        sha256=sha256_file(file),
        described_by=file,
        precision=precision,
        max_batch=max_batch,
    )
