"""Small ONNX classifiers with known behaviour, made by hand."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(
    path, nodes, initializers=(), *, inputs=(("x", TensorProto.FLOAT, ["batch", 1, 2, 4]),), output_shape=("batch", 2)
):
    """Write a model whose output is called `y`."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(output_shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def half_space(path, weights, offset, **shape):
    """Class 1 where weights . x > offset, else class 0 (logits 0 and weights . x - offset). Images [1, 2, 4]."""
    weights = np.asarray(weights, np.float32).reshape(-1)
    matrix = np.stack([np.zeros_like(weights), weights])
    bias = np.array([0, -offset], np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1),
    ]
    return save(path, nodes, [("w", matrix), ("b", bias)], **shape)


def nan_above(path, threshold):
    """Class 0 always, but NaN logits where the first pixel exceeds the threshold: sqrt of a negative number."""
    matrix = np.zeros((2, 8), np.float32)
    matrix[0, 0] = -1.0
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"], transB=1),
        helper.make_node("Sqrt", ["scores"], ["y"]),
    ]
    return save(path, nodes, [("w", matrix), ("b", np.array([threshold, 0.0], np.float32))])


def batch_mean(path):
    """Not a function of its rows: class 1 where the first pixel exceeds the mean over the batch."""
    matrix = np.zeros((2, 8), np.float32)
    matrix[1, 0] = 1.0
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["flat", "mean"], ["centred"]),
        helper.make_node("Gemm", ["centred", "w", "b"], ["y"], transB=1),
    ]
    return save(path, nodes, [("w", matrix), ("b", np.zeros(2, np.float32))])


def write_npz(path, x, y):
    """A data set for `--data npz:`."""
    np.savez(path, x=x, y=y)
    return f"npz:{path}"
