"""`smx export`: builds an artefact, lets it through the parity gate, and only then gives it its name.

The artefact and its manifest appear in the output folder together, or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..artefacts import EXPORT_FORMAT_VERSION, Artefact
from ..data import ImageSet
from ..engines import Engine, available, candidates, open_engine
from ..errors import BadInput, CheckFailed, Unavailable
from ..files import atomic_folder, check_writable, read_json, sha256_files, write_json
from ..noise.gaussian import key_from_seed, random_key
from ..progress import Progress, silent
from ..statistics.bounds import clopper_pearson_upper
from ..versions import versions
from .build import FORMATS, Built, Wanted, build, files_record, resolve_precision, served_name
from .inputs import find_images
from .inspection import InputHints
from .parity import CONFIDENCE, ParityReport, check_parity
from .source import Source, open_source

MANIFEST = "manifest.json"
TIMING_CACHE = "timing.cache"
_MOST_ROWS = 1 << 20


@dataclass(frozen=True)
class ExportResult:
    """The export folder, its artefact's digest, and what the gate saw.

    `pending`: why the gate could not run on the artefact itself (a plan, and no GPU here); then `parity` is that of the
    ONNX file it was built from, where anything could run that.
    """

    path: Path
    artefact: Path
    sha256: str
    parity: ParityReport | None
    pending: str | None = None
    assumptions: list[str] = field(default_factory=list)
    """What an ONNX file of somebody else did not say, and was assumed."""


def export(
    run: Path | str,
    *,
    out: Path | str,
    format: str = "onnx",
    precision: str | None = None,
    max_batch: int | None = None,
    engine: str | None = None,
    device: str = "auto",
    sigma: float | None = None,
    max_disagreement: float = 0.01,
    max_radius_lost: float = 0.05,
    parity_samples: int = 2048,
    calibration_samples: int = 512,
    tf32: bool = False,
    layout: str | None = None,
    input_range: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    allow_external_data: bool = False,
    data: str | None = None,
    data_root: Path | str | None = None,
    download: bool = False,
    seed: int | None = None,
    progress: Progress = silent,
) -> ExportResult:
    """Export `run`, a run folder or an ONNX file of anybody's, into the folder `out`.

    `precision` None: float32, or what the ONNX file is. `engine`: the one the gate runs the artefact on (None: the best
    here that can). `layout`, `input_range`, `mean`, `std`, `input_shape`: what an ONNX file's input wants, where it does
    not say. `allow_external_data`: read its weights from other files of its folder. Raises BadInput, CheckFailed
    (parity: nothing is left in `out`), Unavailable (no builder, or no engine to check the artefact with: it fails
    closed). An earlier export in `out` is removed first, so that a failure never leaves an old artefact in the new one's
    place.
    """
    run, out = Path(run), Path(out)
    _check_arguments(format, max_batch, max_disagreement, max_radius_lost, parity_samples, calibration_samples)
    hints = InputHints(
        layout, input_range, None if mean is None else tuple(mean), None if std is None else tuple(std),
        _shape(input_shape),
    )  # fmt: skip
    source = open_source(run, hints, allow_external_data=allow_external_data)
    chosen = resolve_precision(precision, source.facts, format)
    sigma = source.facts.sigma if sigma is None else sigma
    if sigma is None:
        raise BadInput(f"--sigma: missing, and {run} does not say which noise it was trained for")
    if not 1e-6 <= sigma <= 1e6:
        raise BadInput(f"--sigma {sigma}: must be a positive number (the noise level in [0, 1] pixel units)")
    _check_folder(out)
    images, described = find_images(source.facts, data, data_root, download, split="test")
    gpu = device != "cpu" and torch.cuda.is_available()
    wanted = Wanted(format, chosen, float(sigma), max_batch, tf32, served_name(out), gpu)
    key = random_key() if seed is None else key_from_seed(seed)
    timing = (out / TIMING_CACHE).read_bytes() if (out / TIMING_CACHE).is_file() else None
    if out.exists():
        shutil.rmtree(out)
    with atomic_folder(out) as work:
        if timing is not None and format == "trt":
            (work / TIMING_CACHE).write_bytes(timing)
        progress("exporting", 0, 2, f"building {FORMATS[format]} ({chosen})")
        built = build(
            source, wanted, work, lambda: find_images(source.facts, data, data_root, download, split="train"),
            calibration_samples, key,
        )  # fmt: skip
        progress("exporting", 1, 2, f"comparing {parity_samples} votes")
        gate = _Gate(source, images, described, wanted, parity_samples, max_disagreement, max_radius_lost, key, device)
        record, parity, pending = gate.judge(built, engine)
        write_json(work / MANIFEST, _manifest(work, built, wanted, record))
    progress("exporting", 2, 2, "done")
    artefact = out / built.artefact.relative_to(work)
    return ExportResult(out, artefact, _digest(artefact), parity, pending, source.facts.assumptions)


@dataclass(frozen=True)
class _Gate:
    """The parity gate of one export."""

    source: Source
    images: ImageSet
    described: str
    wanted: Wanted
    samples: int
    max_disagreement: float
    max_radius_lost: float
    key: str
    device: str

    def judge(self, built: Built, engine: str | None) -> tuple[dict[str, Any], ParityReport | None, str | None]:
        """(records for the manifest, report, why it is pending). CheckFailed if the votes differ too much."""
        if self.wanted.format == "trt" and not torch.cuda.is_available():
            pending = "built without a GPU, so the plan could not run; only its ONNX file was compared"
            try:
                report, candidate = self._compare(built.onnx, built.max_batch, engine)
            except Unavailable as error:
                record = {
                    "parity": {"passed": None, "pending": pending},
                    "parity_onnx": {"passed": None, "pending": str(error)},
                }
                return record, None, pending
            record = {"parity": {"passed": None, "pending": pending}, "parity_onnx": _record(report, candidate)}
            return record, report, pending
        report, candidate = self._compare(built.artefact, built.max_batch, engine, built.record.get("plan"))
        return {"parity": _record(report, candidate)}, report, None

    def _compare(
        self, file: Path, max_batch: int | None, engine: str | None, plan: dict[str, Any] | None = None
    ) -> tuple[ParityReport, Engine]:
        facts = self.source.facts
        kind = {".onnx": "onnx", ".plan": "plan", ".xml": "openvino"}[file.suffix]
        # `gated` is what is being found out; None where the graph is a stranger's, whom engines protect us from
        stranger = self.source.artefact.kind == "onnx"
        artefact = Artefact(
            path=file, kind=kind, file=file, sha256=_digest(file), described_by=file, precision=self.wanted.precision,
            max_batch=max_batch, class_names=facts.class_names, plan=plan, gated=None if stranger else True,
        )  # fmt: skip
        candidate = _engine_for(artefact, engine, self.device, facts.fixed_batch)
        report = check_parity(
            self.source.reference(candidate.info.batch_size, self.device), candidate, self.images, self.described,
            sigma=self.wanted.sigma, samples=self.samples, max_disagreement=self.max_disagreement, key=self.key,
            max_radius_lost=self.max_radius_lost,
        )  # fmt: skip
        if not report.passed:
            raise CheckFailed(
                f"parity gate on {candidate.info.name}: {report.summary}; the artefact does not behave like "
                f"{self.source.artefact.path} and was not written"
            )
        return report, candidate


def _record(report: ParityReport, candidate: Engine) -> dict[str, Any]:
    return {**asdict(report), "engine": candidate.info.record()}


def _engine_for(artefact: Artefact, engine: str | None, device: str, batch_size: int | None) -> Engine:
    """The engine called `engine`, or the best here that can run the artefact; Unavailable with all reasons if none."""
    if engine is not None:
        return open_engine(artefact, engine, device=device, batch_size=batch_size)
    reasons = []
    for name in candidates(artefact, device):
        version, reason = available(name)
        if version is not None:
            try:
                return open_engine(artefact, name, device=device, batch_size=batch_size)
            except (BadInput, Unavailable) as error:  # not every runtime has every type
                reason = str(error)
        reasons.append(f"{name}: {reason.removeprefix(f'engine {name}: ')}")
    raise Unavailable(
        f"no engine here can run the {artefact.precision} artefact for the parity gate: {'; '.join(reasons)}"
    )


def _manifest(work: Path, built: Built, wanted: Wanted, gate: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "export",
        "format_version": EXPORT_FORMAT_VERSION,
        "format": wanted.format,
        "artefact": built.artefact.relative_to(work).as_posix(),
        "files": files_record(work),
        **built.record,
        "max_batch": built.max_batch,
        **gate,
        "versions": versions("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _digest(artefact: Path) -> str:
    """As `Artefact.sha256` has it."""
    return sha256_files([artefact, artefact.with_suffix(".bin")] if artefact.suffix == ".xml" else [artefact])


def _shape(values: Sequence[int] | None) -> tuple[int, int, int] | None:
    if values is None:
        return None
    if len(values) != 3 or min(values) < 1:
        raise BadInput(f"--input-shape {','.join(map(str, values))}: expected channels, height, width, e.g. 3,224,224")
    return (values[0], values[1], values[2])


def _check_arguments(
    format: str, max_batch: int | None, max_disagreement: float, max_radius_lost: float, parity_samples: int,
    calibration_samples: int,
) -> None:  # fmt: skip
    if format not in FORMATS:
        raise BadInput(f"--format {format}: must be one of {', '.join(FORMATS)}")
    if max_batch is not None and max_batch < 1:
        raise BadInput(f"--max-batch {max_batch}: must be at least 1")
    for option, most in (
        ("--max-batch", max_batch),
        ("--parity-samples", parity_samples),
        ("--calibration-samples", calibration_samples),
    ):
        if most is not None and most > _MOST_ROWS:
            raise BadInput(f"{option} {most}: must be at most {_MOST_ROWS}")
    for option, limit in (("--max-disagreement", max_disagreement), ("--max-radius-lost", max_radius_lost)):
        if not 0 <= limit < 1:
            raise BadInput(f"{option} {limit}: must lie in [0, 1), e.g. 0.01")
    for option, number in (("--parity-samples", parity_samples), ("--calibration-samples", calibration_samples)):
        if number < 1:
            raise BadInput(f"{option} {number}: must be at least 1")
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
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if present and MANIFEST not in present:
        raise BadInput(f"--out {out}: not empty and not an earlier export; choose another")
    if present:
        manifest = read_json(out / MANIFEST, "an export manifest")
        listed = manifest.get("files")
        foreign = present - {MANIFEST} - set(listed if isinstance(listed, dict) else ())
        if manifest.get("kind") != "export" or foreign:
            raise BadInput(
                f"--out {out}: holds files of somebody else ({', '.join(sorted(foreign)) or MANIFEST}); choose another"
            )
