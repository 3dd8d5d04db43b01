"""Builds `model.plan` from an ONNX file with TensorRT (`tensorrt` or `tensorrt_rtx`), strongly typed.

The precision is what the ONNX file says, nothing is turned down in silence: the types of the layers that TensorRT chose
go into the manifest. `tensorrt_rtx` needs no GPU to build. Knows nothing about running plans (`engines/trt.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engines import trt_bindings
from ..errors import BadInput, Unavailable

RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""What tensorrt_rtx builds for where it sees no GPU (its documentation; its ComputeCapability type)."""
LAYER_TYPES = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8", "fp8": "FP8"}
_SAME_TYPES = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16", "INT8": "Int8", "E4M3": "FP8"}
_DATATYPE = re.compile(r'Datatype"?: *"?([^",}\]]+)')


@dataclass(frozen=True)
class PlanFacts:
    """The sidecar of a plan: what it was built with and for. The engine refuses it anywhere else."""

    package: str
    version: str
    gpu: str | None
    """The GPU it was built on; None: it was built without one."""
    compute_capabilities: list[str]
    """Where it runs, e.g. ["9.0"]."""
    profile: dict[str, int]
    """Rows of a batch: min, opt, max."""
    tf32: bool
    layer_types: dict[str, int]
    """Tensors of each type among the layers' inputs, weights and outputs; empty where TensorRT does not say."""


def build_plan(
    onnx_file: Path, out: Path, *, max_batch: int, precision: str, tf32: bool, fixed_batch: bool
) -> PlanFacts:
    """Build `out` (and `timing.cache`, `layers.txt` beside it) from `onnx_file`.

    `fixed_batch`: the network takes batches of `max_batch` only. Raises BadInput with TensorRT's own reasons, or
    Unavailable where no TensorRT is installed.
    """
    package = _package_for_building()
    trt = trt_bindings.load(package)
    logger = trt_bindings.make_logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError:  # what `tensorrt` says without a GPU: "factory function returned nullptr"
        raise Unavailable(f"--format trt: {package} cannot build without a GPU; {trt_bindings.EXTRA}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, onnx_file)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    least = max_batch if fixed_batch else 1
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    shape = tuple(image.shape)[1:]
    profile.set_shape(image.name, (least, *shape), (max_batch, *shape), (max_batch, *shape))
    config.add_optimization_profile(profile)
    cache = out.with_name("timing.cache")
    if package == "tensorrt":  # RTX keeps none: it times its kernels where it runs
        config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.exists() else b""), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BadInput(
            f"--format trt: {package} cannot build {onnx_file.name} ({logger.errors() or 'it does not say why'})"
        )
    out.write_bytes(bytes(plan))
    if package == "tensorrt":
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    layers = _layers(trt, logger, out)
    out.with_name("layers.txt").write_text(layers, encoding="utf-8")
    facts = PlanFacts(
        package, trt_bindings.libraries_version(package), *_target(package),
        {"min": least, "opt": max_batch, "max": max_batch}, tf32, count_layer_types(layers),
    )  # fmt: skip
    _check_precision(facts, precision)
    return facts


def _package_for_building() -> str:
    """`tensorrt` where there is a GPU for it, otherwise `tensorrt_rtx`."""
    import torch

    found = trt_bindings.installed()
    if "tensorrt" in found and (torch.cuda.is_available() or len(found) == 1):
        return "tensorrt"
    return "tensorrt_rtx"


def _parse(trt: Any, network: Any, logger: Any, onnx_file: Path) -> None:
    """Fill `network`. BadInput lists every node that TensorRT cannot take, and why."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx_file)):
        return
    reasons = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        what = " ".join(str(error.desc()).split())
        node = f"{error.node_operator()} {error.node_name()}: " if error.node_operator() else ""
        reasons.append(f"{node}{what[:300]}")
    raise BadInput(
        f"--format trt: TensorRT cannot take the network: {'; '.join(dict.fromkeys(reasons)) or logger.errors()}"
    )


def _target(package: str) -> tuple[str | None, list[str]]:
    """(GPU it is built on, compute capabilities it is built for)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), [".".join(map(str, torch.cuda.get_device_capability()))]
    assert package == "tensorrt_rtx"
    return None, list(RTX_CAPABILITIES)


def _layers(trt: Any, logger: Any, plan: Path) -> str:
    """The layers that TensorRT made, with their types: from the inspector, or, without a GPU, from the builder's log."""
    import torch

    if torch.cuda.is_available():
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan.read_bytes())
        if engine is not None:
            inspector = engine.create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    said = [text for _, text in logger.lines if text.startswith("Layers:")]
    return said[-1].replace("\nName:", "\n\nName:") if said else ""


def count_layer_types(layers: str) -> dict[str, int]:
    """How often TensorRT names each type. It says `Datatype: Half`, `"Format/Datatype": "Half"` or, in older releases,
    `"Format/Datatype": "Row major linear FP16 format"`."""
    found: Counter[str] = Counter()
    for said in _DATATYPE.findall(layers):
        words = [_SAME_TYPES.get(word, word) for word in said.replace(".", " ").split()]
        known = [word for word in words if word in LAYER_TYPES.values()]
        found.update(known[:1] or (words if len(words) == 1 else []))
    return dict(found)


def _check_precision(facts: PlanFacts, precision: str) -> None:
    """BadInput if TensorRT names its layers' types and the one that was asked for is not among them."""
    wanted = LAYER_TYPES.get(precision)
    named = {name.upper() for name in facts.layer_types}
    if wanted and named and not any(name.startswith(wanted.upper()) for name in named):
        raise BadInput(
            f"--precision {precision}: TensorRT made layers of {', '.join(sorted(facts.layer_types))} only; "
            "the plan would not be what was asked for"
        )
