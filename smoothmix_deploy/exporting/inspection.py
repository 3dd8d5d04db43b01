"""What does somebody else's ONNX classifier want? Looks at inputs, layout, range, normalisation, outputs and batch size.

What the file does not say is taken from the user's hints, or assumed aloud. Knows nothing about what is exported to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..artefacts import Artefact
from ..engines.ort_session import onnxruntime, open_session
from ..engines.trial import check_in_child
from ..errors import BadInput
from ..messages import first_line
from ..records import MOST_NUMBERS
from .adapter import ELEMENTS, Adapter
from .onnx_file import INPUT

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class InputHints:
    """What the user says of an ONNX file's input. None: look, then assume."""

    layout: str | None = None
    """"nchw" or "nhwc"."""
    input_range: float | None = None
    """The file's value of white: 1 or 255."""
    mean: tuple[float, ...] | None = None
    """Subtracted by whoever calls the file, per channel, in its own range; None: nothing is."""
    std: tuple[float, ...] | None = None
    input_shape: tuple[int, int, int] | None = None
    """C, H, W, where the file leaves them open."""


def inspect(artefact: Artefact, model: onnx.ModelProto, hints: InputHints) -> Adapter:
    """Find out what `model` wants. BadInput, with the reason, for what is no image classifier or cannot be known."""
    file = artefact.file
    value = _single_input(model, file)
    assumptions: list[str] = []
    dims = [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
    layout = _layout(dims, hints, file, assumptions)
    shape = _shape(dims, layout, hints, file)
    element = value.type.tensor_type.elem_type
    ours = artefact.precision is not None
    scale = _scale(element, hints, ours, model, value.name, assumptions)
    for name, values in (("--mean", hints.mean), ("--std", hints.std)):
        if values is not None and len(values) != shape[0]:
            raise BadInput(f"{name}: {len(values)} values for the {shape[0]} channels of {file}")
        if values is not None and not (np.isfinite(values).all() and (name == "--mean" or min(values) > 0)):
            wanted = "finite" if name == "--mean" else "positive and finite"
            raise BadInput(f"{name} {','.join(map(str, values))}: must be {wanted} numbers")
    draft = Adapter(
        input=value.name, output="", output_rank=0, layout=layout, element=element, scale=scale, mean=hints.mean,
        std=hints.std, shape=shape, num_classes=0, precision=_precision(model), fixed_batch=dims[0],
        rows=dims[0], assumptions=assumptions,
    )  # fmt: skip
    for what in ("onnx", "ort"):  # if it crashes one of them, let it be another process's
        check_in_child(file, what)
    return _with_output(draft, artefact, model)


def _single_input(model: onnx.ModelProto, file: Any) -> onnx.ValueInfoProto:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    found = ", ".join(
        f"{v.name}: {TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower()}"
        f"{[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]}"
        for v in inputs
    )
    value = inputs[0] if len(inputs) == 1 else None
    tensor = value.type.tensor_type if value is not None else None
    if tensor is None or len(tensor.shape.dim) != 4 or tensor.elem_type not in ELEMENTS:
        raise BadInput(
            f"{file}: expected one image input of four dimensions, found {found or 'none'}: not an image classifier"
        )
    assert value is not None
    return value


def _layout(dims: list[int | None], hints: InputHints, file: Any, assumptions: list[str]) -> str:
    if hints.layout not in (None, "nchw", "nhwc"):
        raise BadInput(f"--layout {hints.layout}: must be nchw or nhwc")
    if hints.layout:
        return hints.layout
    first, last = dims[1] in _CHANNELS, dims[3] in _CHANNELS
    if last and not first:
        assumptions.append(f"input {dims} is [batch, H, W, C], as its last dimension is {dims[3]}")
        return "nhwc"
    if not first:
        assumptions.append(f"input {dims} is [batch, C, H, W]")
    return "nchw"


def _shape(dims: list[int | None], layout: str, hints: InputHints, file: Any) -> tuple[int, int, int]:
    order = (1, 2, 3) if layout == "nchw" else (3, 1, 2)
    said = [dims[i] for i in order]
    known = hints.input_shape or (None, None, None)
    shape = [known[i] if said[i] is None else said[i] for i in range(3)]
    if any(size is None or size < 1 for size in shape):
        raise BadInput(
            f"{file}: leaves its image size open ({said} for C, H, W); say it with --input-shape, e.g. 3,224,224"
        )
    if math.prod(int(size or 0) for size in shape) > MOST_NUMBERS:
        raise BadInput(f"{file}: takes images of {shape} (C, H, W): more than any classifier's; a damaged file?")
    if hints.input_shape is not None and list(hints.input_shape) != shape:
        raise BadInput(f"--input-shape {','.join(map(str, hints.input_shape))}: {file} takes {shape}")
    return (int(shape[0] or 0), int(shape[1] or 0), int(shape[2] or 0))


def _scale(
    element: int, hints: InputHints, ours: bool, model: onnx.ModelProto, name: str, assumptions: list[str]
) -> float:
    """What our [0, 1] is multiplied by."""
    if hints.input_range is not None:
        if not 0 < hints.input_range < np.inf:
            raise BadInput(f"--input-range {hints.input_range}: must be positive, e.g. 1 or 255")
        return hints.input_range
    if ours or hints.mean is not None:
        return 1.0
    if element == TensorProto.UINT8:
        assumptions.append("uint8 input: images are multiplied by 255, rounded and clipped to 0 .. 255")
        return 255.0
    constants = _first_constants(model.graph, name)
    if constants is not None and np.abs(constants).max() > 2:
        assumptions.append(
            f"the graph starts with constants up to {np.abs(constants).max():.4g}, as for pixels in 0 .. 255: images are multiplied by 255"
        )
        return 255.0
    seen = "the graph normalises its input itself" if constants is not None else "no normalisation is added"
    assumptions.append(f"images in [0, 1] go in as they are ({seen}); --input-range, --mean and --std say otherwise")
    return 1.0


def _first_constants(graph: onnx.GraphProto, name: str) -> np.ndarray | None:
    """What the first node subtracts from, adds to or divides the input by; None if it does something else."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {
        node.output[0]: a.t
        for node in graph.node
        if node.op_type == "Constant"
        for a in node.attribute
        if a.name == "value"
    }
    for node in graph.node:
        if name in node.input and node.op_type in ("Sub", "Add", "Div"):
            others = [stored[other] for other in node.input if other in stored]
            return numpy_helper.to_array(others[0]).astype(np.float64).reshape(-1) if others else None
        if name in node.input and node.op_type in ("Transpose", "Cast", "Identity"):
            name = node.output[0]
    return None


def _precision(model: onnx.ModelProto) -> str:
    types = {tensor.data_type for tensor in model.graph.initializer}
    if any(
        node.op_type in ("QuantizeLinear", "QLinearConv", "ConvInteger", "QLinearMatMul") for node in model.graph.node
    ):
        return "int8"
    if TensorProto.BFLOAT16 in types:
        return "bf16"
    return "fp16" if TensorProto.FLOAT16 in types else "fp32"


def _with_output(draft: Adapter, artefact: Artefact, model: onnx.ModelProto) -> Adapter:
    """Run the file once: which output has the class scores, how many classes, and whether any batch size will do."""
    ort = onnxruntime("ort")
    session = open_session(artefact.file, ort.SessionOptions(), ["CPUExecutionProvider"])
    rows = draft.fixed_batch or 2
    x = np.random.default_rng(0).random((rows, *draft.shape), dtype=np.float32)
    try:
        found = session.run(None, {draft.input: draft.prepare(x)})
    except Exception as error:
        raise BadInput(f"{artefact.file}: ONNX Runtime cannot run {list(x.shape)} ({first_line(error)})") from None
    outputs = {o.name: v for o, v in zip(session.get_outputs(), found, strict=True) if isinstance(v, np.ndarray)}
    scores = {
        name: v for name, v in outputs.items()
        if v.dtype.kind == "f" and v.ndim >= 2 and len(v) == rows and v.size == rows * v.shape[1] and v.shape[1] >= 2
    }  # fmt: skip
    if not scores:
        shown = ", ".join(f"{name} {v.dtype}{list(v.shape)}" for name, v in outputs.items()) or "none"
        raise BadInput(f"{artefact.file}: no output is class scores [{rows}, K], found {shown}: not a classifier")
    name, logits = next(iter(scores.items()))
    assumptions = list(draft.assumptions)
    if len(outputs) > 1:
        assumptions.append(f"of the outputs {', '.join(outputs)} the class scores are {name}")
    done = replace(
        draft, output=name, output_rank=logits.ndim, num_classes=int(logits.shape[1]), assumptions=assumptions
    )
    if draft.fixed_batch is not None and artefact.gated is None and _takes_any_batch(done, model, x, logits):
        assumptions.append(f"the batch size of {draft.fixed_batch} in the file is no need: others give the same scores")
        done = replace(done, fixed_batch=None)
    return done


def _takes_any_batch(adapter: Adapter, model: onnx.ModelProto, x: np.ndarray, logits: np.ndarray) -> bool:
    """Whether the graph, with its batch dimension freed, gives the rows of a larger batch the same scores."""
    ort = onnxruntime("ort")
    try:
        freed = replace(adapter, fixed_batch=None).apply(model)
        session = ort.InferenceSession(freed.SerializeToString(), providers=["CPUExecutionProvider"], enable_fallback=0)
        rows = np.concatenate([x, x[::-1], 1 - x])
        found = session.run(None, {INPUT: rows})[0]
        one = session.run(None, {INPUT: rows[-1:]})[0]
    except Exception:  # whatever it says: the batch size is part of this graph
        return False
    expected = logits.reshape(len(x), -1)
    spread = max(float(np.std(expected)), 1e-6)
    same = found.shape == (len(rows), adapter.num_classes) and one.shape == (1, adapter.num_classes)
    return bool(
        same
        and np.abs(found[: len(x)] - expected).max() < 1e-3 * spread
        and np.abs(found[-1:] - one).max() < 1e-3 * spread
    )
