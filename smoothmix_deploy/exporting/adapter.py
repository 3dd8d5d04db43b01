"""A graph round somebody else's ONNX classifier that takes our images and gives our logits.

The same preparation of the input exists twice, as graph nodes and in NumPy, so that the parity gate can compare the two.
What the file wants is found out in `inspection`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from ..artefacts import Artefact
from ..engines.base import EngineInfo
from ..engines.ort_session import onnxruntime, open_session
from ..errors import BadInput
from ..messages import first_line
from .onnx_file import INPUT, OUTPUT

ELEMENTS: dict[int, Any] = {
    TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """From our images to the file's input and from its output to our logits."""

    input: str
    output: str
    output_rank: int
    layout: str
    element: int
    scale: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    shape: tuple[int, int, int]
    """C, H, W."""
    num_classes: int
    precision: str
    fixed_batch: int | None
    """The only batch size that the graph with our input and output takes; None: any."""
    rows: int | None
    """The only one that the file as it came takes: it may be written in its input's shape and nowhere else."""
    assumptions: list[str] = field(default_factory=list)

    @property
    def added(self) -> bool:
        """Whether anything stands between our images and the file's own input."""
        return self.scale != 1 or self.mean is not None or self.layout != "nchw" or self.element != TensorProto.FLOAT

    def prepare(self, x_BCHW: np.ndarray) -> np.ndarray:
        """Our images as the file wants them: the NumPy twin of the nodes that `apply` adds."""
        x = x_BCHW * np.float32(self.scale)
        for values, operation in ((self.mean, np.subtract), (self.std, np.divide)):
            if values is not None:
                x = operation(x, np.asarray(values, np.float32).reshape(-1, 1, 1))
        if self.element == TensorProto.UINT8:
            x = np.clip(np.rint(x), 0, 255)
        x = x.transpose(0, 2, 3, 1) if self.layout == "nhwc" else x
        return np.ascontiguousarray(x.astype(ELEMENTS[self.element]))

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """`model` with our input and output round it. BadInput if the result is no valid model."""
        adapted = onnx.ModelProto()
        adapted.CopyFrom(model)
        graph = adapted.graph
        del graph.value_info[:]
        _prefix_names(graph, "net/")
        before = self._nodes_before("net/" + self.input, graph)
        after = self._nodes_after("net/" + self.output, graph)
        nodes = [*before, *graph.node, *after]
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend(nodes)
        batch = self.fixed_batch or "batch"
        graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, *self.shape]))
        graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [batch, self.num_classes]))
        adapted.ir_version = max(adapted.ir_version, 4)  # before 4, stored weights had to be listed as inputs
        try:
            onnx.checker.check_model(adapted)
        except Exception as error:
            raise BadInput(f"the network cannot be put into our form ({first_line(error)})") from None
        return adapted

    def _nodes_before(self, target: str, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        steps: list[tuple[str, Any, dict[str, Any]]] = []  # operator, constant, attributes
        if self.scale != 1:
            steps.append(("Mul", np.float32(self.scale), {}))
        for name, values in (("Sub", self.mean), ("Div", self.std)):
            if values is not None:
                steps.append((name, np.asarray(values, np.float32).reshape(1, -1, 1, 1), {}))
        if self.element == TensorProto.UINT8:
            steps += [("Round", None, {}), ("Max", np.float32(0), {}), ("Min", np.float32(255), {})]
        if self.element != TensorProto.FLOAT:
            steps.append(("Cast", None, {"to": self.element}))
        if self.layout == "nhwc":
            steps.append(("Transpose", None, {"perm": [0, 2, 3, 1]}))
        steps = steps or [("Identity", None, {})]
        nodes, name = [], INPUT
        for i, (operator, value, attributes) in enumerate(steps):
            inputs = [name]
            if value is not None:
                inputs.append(f"smx/constant_{i}")
                graph.initializer.append(numpy_helper.from_array(np.asarray(value), inputs[1]))
            name = target if i == len(steps) - 1 else f"smx/prepared_{i}"
            nodes.append(helper.make_node(operator, inputs, [name], f"smx/prepare_{i}", **attributes))
        return nodes

    def _nodes_after(self, source: str, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        operators: list[tuple[str, dict[str, Any]]] = []
        if self.output_rank > 2:  # [B, K, 1, 1]
            operators.append(("Flatten", {"axis": 1}))
        operators.append(("Cast", {"to": TensorProto.FLOAT}))
        nodes, name = [], source
        for i, (operator, attributes) in enumerate(operators):
            result = OUTPUT if i == len(operators) - 1 else f"smx/result_{i}"
            nodes.append(helper.make_node(operator, [name], [result], f"smx/answer_{i}", **attributes))
            name = result
        return nodes


class AdaptedEngine:
    """The untouched file on ONNX Runtime, with images prepared in NumPy: the gate's reference."""

    info: EngineInfo

    def __init__(self, artefact: Artefact, adapter: Adapter, batch_size: int) -> None:
        ort = onnxruntime("ort")
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # as it is written
        self._session = open_session(artefact.file, options, ["CPUExecutionProvider"])
        self._adapter = adapter
        self.info = EngineInfo(
            name="ort", version=str(ort.__version__), device="cpu", precision=artefact.precision or adapter.precision,
            batch_size=adapter.rows or batch_size, threads=None, input_shape=adapter.shape,
            num_classes=adapter.num_classes, artefact_sha256=artefact.sha256,
        )  # fmt: skip

    def logits(self, x_BCHW: np.ndarray) -> np.ndarray:
        """[B, K] of float32 [B, C, H, W]; in the file's own batches where it takes no others."""
        size = self._adapter.rows or len(x_BCHW)
        filled = np.resize(x_BCHW, (-(-len(x_BCHW) // size) * size, *x_BCHW.shape[1:]))  # repeats rows to fill the last
        prepared = self._adapter.prepare(filled)
        found = [
            self._session.run([self._adapter.output], {self._adapter.input: prepared[i : i + size]})[0]
            for i in range(0, len(prepared), size)
        ]
        scores = np.concatenate(found).reshape(len(filled), -1).astype(np.float32)
        return scores[: len(x_BCHW)]


def _prefix_names(graph: onnx.GraphProto, prefix: str) -> None:
    """So that no name of the file meets one of ours."""
    graph.CopyFrom(compose.add_prefix_graph(graph, prefix))
