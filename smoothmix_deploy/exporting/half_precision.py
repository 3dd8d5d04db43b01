"""fp16 and bf16: gives a float32 ONNX graph another floating-point type, with float32 images in and logits out.

The types in the file are what runs: strongly typed TensorRT takes them literally, and so nothing falls back to float32
in silence. Works on any graph, whoever made it. Knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import BadInput
from ..messages import first_line

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LEAST_OPSET = {"fp16": 13, "bf16": 22}
"""The first opset whose convolutions and pools take the type."""
_STAY_FLOAT = {"Resize": (1, 2), "Upsample": (1,), "QuantizeLinear": (1,), "DequantizeLinear": (1,)}
"""Inputs that the ONNX standard wants in float32 whatever the data's type is."""


def to_half(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """`model` with all float32 weights and activations in the type of `precision`. BadInput if that cannot be done.

    Raises where a weight overflows the type, an operator does not take it, or nothing in the graph is float32.
    """
    target = TYPES[precision]
    model = with_opset(model, LEAST_OPSET[precision])
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.value_info[:]
    for graph in _graphs(copied.graph):
        _spell_out_hard_swish(graph)
    stay = _fixed_constants(copied.graph)
    changed = sum(_convert_graph(graph, target, stay) for graph in _graphs(copied.graph))
    _cast_fixed_inputs(copied.graph, stay)
    for inner in list(_graphs(copied.graph))[1:]:
        _declare(inner, target)
    if not changed:
        raise BadInput(f"--precision {precision}: the network has no float32 weights to convert")
    _cast_ends(copied.graph, target)
    try:
        onnx.checker.check_model(copied, full_check=True)
    except Exception as error:  # onnx's checker and shape inference have several exception types
        raise BadInput(f"--precision {precision}: an operator does not take it ({first_line(error)})") from None
    return copied


def with_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """`model`, converted upwards if its opset of the standard domain is below `least`."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset >= least:
        return model
    try:
        return onnx.version_converter.convert_version(model, least)
    except Exception as error:
        raise BadInput(f"the model's opset {opset} cannot be raised to {least} ({first_line(error)})") from None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all that are nested in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for part in _graphs(graph):
        yield from part.node


def _spell_out_hard_swish(graph: onnx.GraphProto) -> None:
    """x * HardSigmoid(x), which is what the standard says it is: TensorRT takes HardSwish in fp16, but not in bf16."""
    for position, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "HardSwish":
            x, y = node.input[0], node.output[0]
            gate = helper.make_node("HardSigmoid", [x], [f"{y}_gate"], f"{node.name}_gate", alpha=1 / 6, beta=0.5)
            node.CopyFrom(helper.make_node("Mul", [x, f"{y}_gate"], [y], node.name))
            graph.node.insert(position, gate)


def _fixed_constants(model: onnx.GraphProto) -> set[str]:
    """Constants that nothing uses but inputs that have to be float32: they stay as they are.

    They are not cast there and back: a third is no float16, and builders want to see the scales of a Resize.
    """
    constants = {tensor.name for graph in _graphs(model) for tensor in graph.initializer}
    constants |= {node.output[0] for node in _nodes(model) if node.op_type == "Constant"}
    otherwise = {
        name
        for node in _nodes(model)
        for i, name in enumerate(node.input)
        if i not in _STAY_FLOAT.get(node.op_type, ())
    }
    return constants - otherwise


def _cast_fixed_inputs(model: onnx.GraphProto, stay: set[str]) -> None:
    """Casts to float32 before all other inputs that have to be: computed ones, and constants with several uses."""
    taken = _names(model)
    for graph in _graphs(model):
        for position, node in reversed(list(enumerate(graph.node))):
            for i in _STAY_FLOAT.get(node.op_type, ()):
                name = node.input[i] if i < len(node.input) else ""
                if name and name not in stay:
                    node.input[i] = _unused(f"{name}_float", taken)
                    graph.node.insert(position, helper.make_node("Cast", [name], [node.input[i]], to=TensorProto.FLOAT))


def _names(graph: onnx.GraphProto) -> set[str]:
    """All names of values, nested graphs' too."""
    values = {value.name for part in _graphs(graph) for value in (*part.input, *part.output, *part.initializer)}
    return values | {name for node in _nodes(graph) for name in (*node.input, *node.output)}


def _unused(name: str, taken: set[str]) -> str:
    """`name`, or the first like it that no value has; it is taken from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _convert_graph(graph: onnx.GraphProto, target: int, fixed: set[str]) -> int:
    """Stored tensors and type attributes of one graph; how many tensors changed."""
    changed = 0
    for tensor in graph.initializer:
        if tensor.name not in fixed:
            changed += _convert_tensor(tensor, target)
    for node in graph.node:
        if node.op_type in ("Constant", "ConstantOfShape") and node.output[0] not in fixed:
            _constant_as_tensor(node)
        for attribute in node.attribute:
            if attribute.HasField("t") and node.output[0] not in fixed:
                changed += _convert_tensor(attribute.t, target)
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = target
    return changed


def _declare(graph: onnx.GraphProto, target: int) -> None:
    """What a nested graph says of its own values' types."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = target


def _constant_as_tensor(node: onnx.NodeProto) -> None:
    """`value_float` and `value_floats` have no room for another type; `value` has."""
    for attribute in node.attribute:
        if attribute.name in ("value_float", "value_floats"):
            value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = numpy_helper.from_array(np.asarray(value, np.float32))
            attribute.CopyFrom(helper.make_attribute("value", tensor))


def _convert_tensor(tensor: onnx.TensorProto, target: int) -> int:
    if tensor.data_type != TensorProto.FLOAT:
        return 0
    values = numpy_helper.to_array(tensor)
    numpy_type: Any = helper.tensor_dtype_to_np_dtype(target)
    with np.errstate(over="ignore"):
        converted = values.astype(numpy_type)
    lost = np.isfinite(values) & ~np.isfinite(converted.astype(np.float32))
    if lost.any():
        raise BadInput(
            f"{tensor.name or 'a constant'} has values up to {np.abs(values[lost]).max():g}: too large for this precision"
        )
    tensor.CopyFrom(numpy_helper.from_array(converted, tensor.name))
    return 1


def _cast_ends(graph: onnx.GraphProto, target: int) -> None:
    """Float32 at the graph's inputs and outputs, casts inside."""
    stored = {tensor.name for tensor in graph.initializer}
    taken = _names(graph)
    before, after = [], []
    for value in graph.input:
        if value.name not in stored and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            inside = _unused(f"{value.name}_cast", taken)
            _rename(graph, value.name, inside)
            before.append(helper.make_node("Cast", [value.name], [inside], f"{value.name}_in", to=target))
    for value in graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            inside = _unused(f"{value.name}_half", taken)
            _rename(graph, value.name, inside)
            after.append(helper.make_node("Cast", [inside], [value.name], f"{value.name}_out", to=TensorProto.FLOAT))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Wherever nodes read or write the value `old`, also in nested graphs."""
    for node in _nodes(graph):
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
