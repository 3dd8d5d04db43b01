"""Puts an ONNX file into a Triton model repository, with the command that serves it.

Follows Triton's model_config.proto; the tests parse what is written with the schema that Triton's client ships.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "model_repository"
FILE = "model.onnx"
IMAGE = "nvcr.io/nvidia/tritonserver:25.08-py3"


@dataclass(frozen=True)
class Served:
    """What the configuration says."""

    name: str
    input_name: str
    output_name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    class_names: list[str] | None
    max_batch: int
    fixed_batch: bool
    sigma: float | None
    gpu: bool


def write_repository(artefact: Path, folder: Path, served: Served) -> Path:
    """Move `artefact` (.onnx) into `folder`/model_repository/NAME/1/ and describe it; its new path."""
    model = folder / REPOSITORY / served.name
    target = model / "1" / FILE
    target.parent.mkdir(parents=True)
    artefact.rename(target)
    (model / "config.pbtxt").write_text(_config(served), encoding="utf-8")
    if served.class_names:
        labels = "".join(" ".join(name.split()) + "\n" for name in served.class_names)
        (model / "labels.txt").write_text(labels, encoding="utf-8")
    (folder / "README.md").write_text(_readme(served), encoding="utf-8")
    return target


def _config(served: Served) -> str:
    labels = '\n    label_filename: "labels.txt"' if served.class_names else ""
    dims = ", ".join(map(str, served.input_shape))
    # A network that takes one batch size only has it in its shape; Triton's own batching is off for it (max_batch_size 0).
    rows = f"{served.max_batch}, " if served.fixed_batch else ""
    batching = ""
    if not served.fixed_batch:
        preferred = sorted({size for size in (8, 32, served.max_batch) if size <= served.max_batch})
        sizes = ", ".join(map(str, preferred))
        batching = (
            f"dynamic_batching {{\n  preferred_batch_size: [ {sizes} ]\n  max_queue_delay_microseconds: 1000\n}}\n"
        )
    return f"""name: {json.dumps(served.name)}
backend: "onnxruntime"
platform: "onnxruntime_onnx"
default_model_filename: "{FILE}"
max_batch_size: {0 if served.fixed_batch else served.max_batch}
input [
  {{
    name: {json.dumps(served.input_name)}
    data_type: TYPE_FP32
    dims: [ {rows}{dims} ]
  }}
]
output [
  {{
    name: {json.dumps(served.output_name)}
    data_type: TYPE_FP32
    dims: [ {rows}{served.num_classes} ]{labels}
  }}
]
instance_group [
  {{
    count: 1
    kind: {"KIND_GPU" if served.gpu else "KIND_CPU"}
  }}
]
{batching}version_policy: {{ latest: {{ num_versions: 1 }} }}
"""


def _readme(served: Served) -> str:
    gpus = " --gpus=1" if served.gpu else ""
    shape = list(served.input_shape)
    sigma = f" plus Gaussian noise of standard deviation {served.sigma:g}" if served.sigma else ""
    example = json.dumps(
        {"inputs": [{"name": served.input_name, "shape": [1, *shape], "datatype": "FP32", "data": "[...]"}]}
    )
    return f"""# {served.name} on Triton Inference Server

Serve it from this folder (this release of the server or a later one):

    docker run --rm{gpus} -p 8000:8000 -p 8001:8001 -p 8002:8002 \\
        -v "$PWD/{REPOSITORY}:/models:ro" {IMAGE} \\
        tritonserver --model-repository=/models --strict-readiness=true

Ready when `curl -f localhost:8000/v2/health/ready` succeeds. One image, as JSON (binary is faster):

    curl -s localhost:8000/v2/models/{served.name}/infer -d '{example}'

Input: float32 [batch, {", ".join(map(str, shape))}], images in [0, 1]; normalisation is inside. Output: one score a class.

What is served is the base classifier. A certificate is about the *smoothed* one: the class that most of many copies of an
image{sigma} are given. Send noisy copies and count, or use `smx predict`. Dynamic batching runs batches of changing size;
certificates are for the batch size in their manifest, and engines may differ in the last bits between sizes.
"""
