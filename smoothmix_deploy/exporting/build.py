"""From a source to the files of one format and precision, in a scratch folder. No gate, no manifest: see `run`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data import ImageSet
from ..engines import suitable_batch_size
from ..errors import BadInput
from ..files import sha256_file
from .half_precision import TYPES, to_half
from .onnx_file import INPUT, OUTPUT, save_onnx
from .source import ModelFacts, Source

ONNX_NAME = "model.onnx"
FORMATS = {"onnx": ONNX_NAME, "trt": "model.plan", "openvino": "model.xml", "triton": ONNX_NAME}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class Wanted:
    """What the user asked for, resolved against what the source is."""

    format: str
    precision: str
    sigma: float
    max_batch: int | None
    tf32: bool
    name: str
    """Of the served model."""
    gpu: bool
    """Whether it will be served on a GPU."""


@dataclass(frozen=True)
class Built:
    """`artefact`: the file that ships, below the scratch folder. `record`: what the manifest says of it."""

    artefact: Path
    onnx: Path
    max_batch: int | None
    record: dict[str, Any]


def resolve_precision(precision: str | None, facts: ModelFacts, format: str) -> str:
    """None: the source's own. BadInput for what the source or the format cannot become."""
    if precision is None:
        return facts.precision
    if precision not in PRECISIONS:
        raise BadInput(f"--precision {precision}: must be one of {', '.join(PRECISIONS)}")
    if precision != facts.precision and facts.precision != "fp32":
        raise BadInput(f"--precision {precision}: the source is {facts.precision} already; export from its run folder")
    if precision == "fp8" and format != "trt":
        raise BadInput("--precision fp8: only TensorRT runs it; use --format trt, or int8")
    return precision


def build(
    source: Source, wanted: Wanted, work: Path, calibration: Callable[[], tuple[ImageSet, str]], samples: int, key: str
) -> Built:
    """Write the artefact into `work`. `calibration` finds the images for int8 and fp8. BadInput or Unavailable."""
    facts = source.facts
    model = source.network()
    record: dict[str, Any] = {}
    if wanted.precision != facts.precision and wanted.precision in TYPES:
        model = to_half(model, wanted.precision)
    elif wanted.precision != facts.precision:
        from .quantisation import calibration_batches, quantise

        images, described = calibration()
        batches = calibration_batches(images, wanted.sigma, samples, key)
        model = quantise(model, wanted.precision, batches, work, tensorrt=wanted.format == "trt")
        record["calibration"] = {"images": described, "samples": samples, "sigma": wanted.sigma, "key": key}
    metadata = {
        "precision": wanted.precision, "sigma": wanted.sigma, "class_names": facts.class_names,
        "weights_sha256": facts.weights_sha256, "arch": facts.arch, "method": facts.method, "data": facts.data,
    }  # fmt: skip
    onnx_file = work / ONNX_NAME
    opset = save_onnx(model, onnx_file, metadata)
    rows = facts.fixed_batch or "batch"
    record |= {
        **metadata,
        "input": {"name": INPUT, "shape": [rows, *facts.input_shape], "dtype": "float32"},
        "output": {"name": OUTPUT, "shape": [rows, facts.num_classes], "dtype": "float32"},
        "normalisation": facts.normalisation,
        "opset": opset,
        "source": {
            "kind": source.artefact.kind, "name": source.artefact.path.name, "sha256": source.artefact.sha256,
            "assumptions": facts.assumptions,
        },
    }  # fmt: skip
    artefact, extra, most = _as_format(source, wanted, work, onnx_file)
    return Built(artefact, onnx_file if onnx_file.exists() else artefact, most, {**record, **extra})


def _as_format(source: Source, wanted: Wanted, work: Path, onnx_file: Path) -> tuple[Path, dict[str, Any], int | None]:
    """(the file that ships, what the manifest says of it, most rows of a batch)."""
    facts = source.facts
    most = facts.fixed_batch or wanted.max_batch
    if wanted.format == "trt":
        from .plan_file import build_plan

        most = most or suitable_batch_size(facts.input_shape, source.artefact, cuda=True)
        plan = build_plan(
            onnx_file, work / FORMATS["trt"], max_batch=most, precision=wanted.precision, tf32=wanted.tf32,
            fixed_batch=facts.fixed_batch is not None,
        )  # fmt: skip
        return work / FORMATS["trt"], {"plan": asdict(plan)}, most
    if wanted.format == "openvino":
        from .openvino_file import build_openvino

        build_openvino(onnx_file, work / FORMATS["openvino"])
        onnx_file.unlink()
        return work / FORMATS["openvino"], {}, most
    if wanted.format == "triton":
        from .triton_repository import Served, write_repository

        served = Served(
            wanted.name, INPUT, OUTPUT, facts.input_shape, facts.num_classes, facts.class_names, most or 256,
            facts.fixed_batch is not None, wanted.sigma, wanted.gpu,
        )  # fmt: skip
        return write_repository(onnx_file, work, served), {}, most or 256
    return onnx_file, {}, most


def served_name(path: Path) -> str:
    """A name that Triton and URLs take."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.resolve().name).strip("-.") or "model"


def files_record(work: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of every file in the folder, by its path in it."""
    files = sorted(path for path in work.rglob("*") if path.is_file())
    return {
        path.relative_to(work).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in files
    }
