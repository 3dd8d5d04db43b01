"""int8 and fp8: Q/DQ nodes round convolutions and matrix products, calibrated on noisy images.

Noisy, because that is what the deployed network sees: ranges measured on clean images would clip it. Weights are signed,
symmetric and per channel. For TensorRT so are activations, and biases stay float32: it takes nothing else. The CPU's
runtimes are several times faster, and more accurate, with unsigned activations and integer biases, which let a ReLU vanish
into the rounding (docs/decisions.md). Knows nothing of engines; ONNX Runtime's quantiser does the work.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..data import ImageSet
from ..errors import BadInput, Unavailable
from ..messages import first_line
from ..noise.gaussian import GaussianNoise, Stream
from .half_precision import with_opset

OPERATORS = ["Conv", "Gemm", "MatMul"]
_ALL_ROUNDED = 3
"""Networks of no more products than this have all of them rounded; others keep the first and the last in float32."""
_BATCH = 64


def calibration_batches(images: ImageSet, sigma: float, samples: int, key: str) -> Iterator[np.ndarray]:
    """`samples` noisy images, float32 [64, C, H, W] at a time; one draw of noise an image, cycling through `images`."""
    noise = GaussianNoise(key, int(np.prod(images.shape)))
    for first in range(0, samples, _BATCH):
        batch = np.empty((min(_BATCH, samples - first), *images.shape), np.float32)
        for row in range(len(batch)):
            draw, index = divmod(first + row, len(images))
            noise.fill(batch[row].reshape(1, -1), Stream.CALIBRATION, index, draw)
            batch[row] *= np.float32(sigma)
            batch[row] += images.image(index)
        yield batch


def quantise(
    model: onnx.ModelProto, precision: str, batches: Iterator[np.ndarray], folder: Path, *, tensorrt: bool
) -> onnx.ModelProto:
    """`model` (float32, one image input) with Q/DQ in `precision`, int8 or (for TensorRT) fp8. Scratch goes to `folder`.

    Raises BadInput (nothing to quantise, or the quantiser fails) or Unavailable (no onnxruntime).
    """
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise Unavailable(
            f"--precision {precision}: needs onnxruntime ({first_line(error)}); install smoothmix-deploy[cpu]"
        ) from None
    from onnxruntime.quantization.shape_inference import quant_pre_process

    types = quantization.QuantType
    extra = {"ActivationSymmetric": tensorrt, "WeightSymmetric": True, "QuantizeBias": not tensorrt}
    extra["AddQDQPairToWeight"] = precision == "fp8"  # keeps float weights, which can still be rounded otherwise
    with tempfile.TemporaryDirectory(dir=folder) as work, _quiet():
        plain, prepared, done = (str(Path(work) / f"{name}.onnx") for name in ("plain", "prepared", "done"))
        onnx.save(model, plain)
        try:
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared, done, _reader(quantization, model.graph.input[0].name, batches),
                quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=OPERATORS, per_channel=True,
                activation_type=types.QInt8 if tensorrt else types.QUInt8, weight_type=types.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                nodes_to_exclude=_ends(onnx.load(prepared).graph), extra_options=extra,
            )  # fmt: skip
            quantised = onnx.load(done)
        except Exception as error:  # the quantiser raises whatever its many parts raise
            raise BadInput(f"--precision {precision}: ONNX Runtime's quantiser fails ({first_line(error)})") from None
    if not any(node.op_type == "QuantizeLinear" for node in quantised.graph.node):
        raise BadInput(f"--precision {precision}: the network has none of {', '.join(OPERATORS)} to quantise")
    _free_the_logits(quantised.graph)
    if precision == "fp8":
        _int8_to_fp8(quantised.graph)
        quantised = with_opset(quantised, 19)  # the first whose Q/DQ know fp8
    _drop_unused(quantised.graph)
    return quantised


def _ends(graph: onnx.GraphProto) -> list[str]:
    """The first and the last product: little of the work, most of the damage."""
    names = [node.name for node in graph.node if node.op_type in OPERATORS]
    return [name for name in (names[0], names[-1]) if name] if len(names) > _ALL_ROUNDED else []


def _reader(quantization: Any, name: str, batches: Iterator[np.ndarray]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next batch, or None."""
            batch = next(batches, None)
            return None if batch is None else {name: batch}

    return Reader()


def _free_the_logits(graph: onnx.GraphProto) -> None:
    """Take away the rounding of the network's own output: 8 bits would make ties of what the argmax has to tell apart."""
    made_by = {output: node for node in graph.node for output in node.output}
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    for value in graph.output:
        dequantise = made_by.get(value.name)
        quantise_node = made_by.get(dequantise.input[0]) if dequantise is not None else None
        if dequantise is None or quantise_node is None or dequantise.op_type != "DequantizeLinear":
            continue
        source = made_by.get(quantise_node.input[0])
        if quantise_node.op_type != "QuantizeLinear" or source is None or uses[quantise_node.input[0]] > 1:
            continue
        source.output[:] = [value.name if name == quantise_node.input[0] else name for name in source.output]
        graph.node.remove(dequantise)
        graph.node.remove(quantise_node)


def _int8_to_fp8(graph: onnx.GraphProto) -> None:
    """The same ranges, spread over E4M3's 448 instead of 127. ONNX Runtime's own fp8 calibration clips far too early."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = stored[node.input[1]], stored[node.input[2]]
        if zero.data_type == onnx.TensorProto.INT8:
            shape = list(zero.dims)
            values = (numpy_helper.to_array(scale) * np.float32(127 / 448)).astype(np.float32)
            scale.CopyFrom(numpy_helper.from_array(values, scale.name))
            raw = bytes(int(np.prod(shape, dtype=int)))
            zero.CopyFrom(helper.make_tensor(zero.name, onnx.TensorProto.FLOAT8E4M3FN, shape, raw, raw=True))


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger and on standard output."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().setLevel(level)
