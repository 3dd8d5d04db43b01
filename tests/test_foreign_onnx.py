"""Classifiers that we did not write: certified, or refused with one line that says why. Damaged ones never crash us."""

import contextlib
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.engines import open_engine

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FLOAT, HALF, BYTE, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64
WEIGHTS = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
SMALL = {"parity_samples": 1000, "max_disagreement": 0.02, "seed": 0}


def scores(x_BCHW):
    """What every model here computes, in one way or another: WEIGHTS times the image."""
    return x_BCHW.reshape(len(x_BCHW), -1) @ WEIGHTS


def node(operator, inputs, outputs, **attributes):
    """Inputs and outputs as words."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def model(
    path, nodes, stored=(), *, inputs=(("x", FLOAT, ["batch", 1, 8, 8]),), outputs=(("y", FLOAT, ["batch", 10]),),
    opset=17, ir_version=9, listed=False, domains=(),
):  # fmt: skip
    """Write a model. `listed`: the stored weights are inputs, too, as before IR version 4."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored]
    values = [helper.make_tensor_value_info(*item) for item in inputs]
    if listed:
        values += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    ends = [v if isinstance(v, onnx.ValueInfoProto) else helper.make_tensor_value_info(*v) for v in outputs]
    graph = helper.make_graph(nodes, "foreign", values, ends, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), str(path))
    return path


LINEAR = [node("Flatten", "x", "flat"), node("MatMul", "flat w", "y")]
W = [("w", WEIGHTS)]
FOUR = np.array([4, 64])


def image(*dims, name="x", type=FLOAT):
    """The only input."""
    return ((name, type, list(dims)),)


GOOD = {
    "plain": ((LINEAR, W), {}, "no normalisation is added"),
    "nhwc": (
        ([node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Flatten", "t", "f"), node("MatMul", "f w", "y")], W,
         {"inputs": image("batch", 8, 8, 1)}), {}, "is \\[batch, H, W, C\\]"),
    "uint8": (
        ([node("Cast", "x", "c", to=FLOAT), node("Div", "c k", "s"), node("Flatten", "s", "f"), node("MatMul", "f w", "y")],
         [*W, ("k", np.float32(255))], {"inputs": image("batch", 1, 8, 8, type=BYTE)}), {}, "uint8 input"),
    "255-inside": (
        ([node("Sub", "x m", "c"), node("Div", "c k", "s"), node("Flatten", "s", "f"), node("MatMul", "f w", "y")],
         [*W, ("m", np.float32(127.5)), ("k", np.float32(255))]), {}, "as for pixels in 0 .. 255"),
    "half-input": (
        ([node("Cast", "x", "c", to=FLOAT), node("Flatten", "c", "f"), node("MatMul", "f w", "y")], W,
         {"inputs": image("batch", 1, 8, 8, type=HALF)}), {}, None),
    "double": (
        ([node("Flatten", "x", "f"), node("MatMul", "f w", "y")], [("w", WEIGHTS.astype(np.float64))],
         {"inputs": image("batch", 1, 8, 8, type=TensorProto.DOUBLE), "outputs": (("y", TensorProto.DOUBLE, ["batch", 10]),)}),
        {}, None),
    "batch-1-freed": ((LINEAR, W, {"inputs": image(1, 1, 8, 8), "outputs": (("y", FLOAT, [1, 10]),)}), {}, "is no need"),
    "batch-3-freed": ((LINEAR, W, {"inputs": image(3, 1, 8, 8), "outputs": (("y", FLOAT, [3, 10]),)}), {}, "is no need"),
    "batch-fixed": (
        ([node("Reshape", "x r", "f"), node("MatMul", "f w", "y")], [*W, ("r", FOUR)],
         {"inputs": image(4, 1, 8, 8), "outputs": (("y", FLOAT, [4, 10]),)}), {}, None),
    "several-outputs": (
        ([*LINEAR, node("ArgMax", "y", "label", axis=1, keepdims=0), node("Relu", "x", "features")], W,
         {"outputs": (("features", FLOAT, ["batch", 1, 8, 8]), ("label", INT64, ["batch"]), ("y", FLOAT, ["batch", 10]))}),
        {}, "the class scores are y"),
    "four-dimensional-scores": (
        ([node("Conv", "x w", "y")], [("w", WEIGHTS.T.reshape(10, 1, 8, 8))],
         {"outputs": (("y", FLOAT, ["batch", 10, 1, 1]),)}), {}, None),
    "old-ir": (
        ([node("Flatten", "x", "f"), node("Gemm", "f w c", "y")], [*W, ("c", np.zeros(10, np.float32))],
         {"opset": 8, "ir_version": 3, "listed": True}), {}, None),
    "dynamic-size": (
        ([node("Reshape", "x r", "f"), node("MatMul", "f w", "y")], [*W, ("r", np.array([-1, 64]))],
         {"inputs": image("batch", 1, "h", "w")}), {"input_shape": (1, 8, 8)}, None),
    "unnamed-batch": ((LINEAR, W, {"inputs": image(None, 1, 8, 8), "outputs": (("y", FLOAT, [None, 10]),)}), {}, None),
    "our-names": (
        ([node("Flatten", "images", "smx/prepared_0"), node("MatMul", "smx/prepared_0 smx/constant_0", "logits")],
         [("smx/constant_0", WEIGHTS)],
         {"inputs": image("batch", 1, 8, 8, name="images"), "outputs": (("logits", FLOAT, ["batch", 10]),)}),
        {"input_range": 1.0}, None),
    "net-names": (
        ([node("Flatten", "net/x", "x"), node("MatMul", "x w", "net/y")], W,
         {"inputs": image("batch", 1, 8, 8, name="net/x"), "outputs": (("net/y", FLOAT, ["batch", 10]),)}), {}, None),
    "input-is-used-twice": (
        ([node("Flatten", "x", "f"), node("Flatten", "x", "g"), node("Add", "f g", "s"), node("Mul", "s k", "h"),
          node("MatMul", "h w", "y")], [*W, ("k", np.float32(0.5))]), {}, None),
    "function-of-the-file": ("function", {}, None),
}  # fmt: skip


def write(path, spec):
    """A model of GOOD or BAD."""
    if spec == "function":
        return local_function(path)
    if spec == "no-text":
        model(path, LINEAR, W, inputs=image("rows", 1, 8, 8))
        path.write_bytes(path.read_bytes().replace(b"rows", b"r\xffws"))
        return path
    if spec == "node-no-text":
        model(path, [helper.make_node("Flatten", ["x"], ["flat"], "named"), LINEAR[1]], W)
        path.write_bytes(path.read_bytes().replace(b"named", b"n\xffmed"))
        return path
    nodes, stored, *rest = spec
    return model(path, nodes, stored, **(rest[0] if rest else {}))


def local_function(path):
    """Nodes that are calls of a function which the file itself defines."""
    body = [node("Flatten", "a", "f"), node("MatMul", "f b", "c")]
    function = helper.make_function("own", "Linear", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    model(path, [node("Linear", "x w", "y", domain="own")], W, domains=[("own", 1)])
    proto = onnx.load(path)
    proto.functions.append(function)
    onnx.save(proto, str(path))
    return path


@pytest.mark.parametrize("case", GOOD)
def test_certified(case, tmp_path):
    """The export computes the file's scores of our images, says what it assumed, and certifies."""
    spec, hints, assumed = GOOD[case]
    file = write(tmp_path / "foreign.onnx", spec)
    result = smx.export(file, out=tmp_path / "out", sigma=0.25, data="digits", **hints, **SMALL)
    if assumed:
        assert any(re.search(assumed, text) for text in result.assumptions), result.assumptions
    rows = 4 if case == "batch-fixed" else 5
    engine = open_engine(open_artefact(tmp_path / "out"), "ort", batch_size=rows)
    x = np.random.default_rng(1).random((rows, 1, 8, 8), dtype=np.float32)
    expected = scores(x - 0.5 if case == "255-inside" else x)
    near = {"uint8": 0.05, "half-input": 0.01}.get(case, 1e-4)  # rounded to 1/255, to 11 bits
    np.testing.assert_allclose(engine.logits(x), expected, atol=near * np.abs(expected).max())
    done = smx.certify(tmp_path / "out", data="digits", n=50, stop=3, seed=0, out=tmp_path / "c.jsonl")
    assert done.manifest.engine["batch_size"] == 4 or case != "batch-fixed"


def test_normalisation_by_hints(tmp_path):
    """--mean and --std are in the file's own range, per channel."""
    file = model(tmp_path / "foreign.onnx", LINEAR, W)
    result = smx.export(
        file, out=tmp_path / "out", sigma=0.25, data="digits", input_range=255.0, mean=[100.0], std=[50.0], **SMALL
    )
    x = np.random.default_rng(1).random((5, 1, 8, 8), dtype=np.float32)
    engine = open_engine(open_artefact(result.path), "ort", batch_size=5)
    np.testing.assert_allclose(engine.logits(x), scores((x * 255 - 100) / 50), rtol=1e-3, atol=1e-3)


ZIPMAP = helper.make_value_info(
    "y", helper.make_sequence_type_proto(helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, []))),
)  # fmt: skip
BAD = {
    "two-inputs": (
        ([node("Add", "x z", "s"), node("Flatten", "s", "f"), node("MatMul", "f w", "y")], W,
         {"inputs": (*image("batch", 1, 8, 8), ("z", FLOAT, ["batch", 1, 8, 8]))}), {}, "expected one image input"),
    "no-inputs": (
        ([node("Identity", "w", "y")], [("w", WEIGHTS)], {"inputs": (), "outputs": (("y", FLOAT, [64, 10]),)}), {},
        "found none: not an image classifier"),
    "flat-input": (([node("MatMul", "x w", "y")], W, {"inputs": image("batch", 64)}), {}, "expected one image input"),
    "integers": (
        ([node("Cast", "x", "c", to=FLOAT), node("Flatten", "c", "f"), node("MatMul", "f w", "y")], W,
         {"inputs": image("batch", 1, 8, 8, type=INT64)}), {}, "int64"),
    "no-classifier": (([node("Relu", "x", "y")], [], {"outputs": (("y", FLOAT, ["batch", 1, 8, 8]),)}), {}, "not a classifier"),
    "labels-only": (
        ([*LINEAR[:1], node("MatMul", "flat w", "s"), node("ArgMax", "s", "y", axis=1, keepdims=0)], W,
         {"outputs": (("y", INT64, ["batch"]),)}), {}, "no output is class scores"),
    "one-class": (
        (LINEAR, [("w", WEIGHTS[:, :1])], {"outputs": (("y", FLOAT, ["batch", 1]),)}), {}, "no output is class scores"),
    "zipmap": (
        ([*LINEAR[:1], node("MatMul", "flat w", "s"),
          node("ZipMap", "s", "y", domain="ai.onnx.ml", classlabels_int64s=list(range(10)))], W,
         {"outputs": (ZIPMAP,), "domains": [("ai.onnx.ml", 3)]}), {}, "no output is class scores"),
    "open-size": ((LINEAR, W, {"inputs": image("batch", 1, "h", "w")}), {}, "say it with --input-shape"),
    "wrong-size": (
        (LINEAR, W, {"inputs": image("batch", 1, "h", "w")}), {"input_shape": (1, 9, 9)}, "cannot run"),
    "other-size": ((LINEAR, W), {"input_shape": (1, 9, 9)}, "takes \\[1, 8, 8\\]"),
    "unknown-operator": (
        ([node("Mystery", "x", "y", domain="nobody.knows")], [], {"domains": [("nobody.knows", 1)]}), {}, "cannot load"),
    "future-opset": ((LINEAR, W, {"opset": 99}), {}, "cannot load"),
    "future-ir": ((LINEAR, W, {"ir_version": 99}), {}, "cannot load"),
    "missing-weights": ((LINEAR, []), {}, "cannot load"),
    "no-outputs": ((LINEAR, W, {"outputs": ()}), {}, "foreign.onnx"),
    "zero-size": ((LINEAR, W, {"inputs": image("batch", 1, 0, 8)}), {}, "foreign.onnx"),
    "huge-size": (  # what a flipped byte makes of a small one
        ([node("Flatten", "x", "f"), node("ReduceMean", "f", "y", axes=[1])], [],
         {"inputs": image("batch", 1, 1 << 30, 1 << 30)}), {}, "foreign.onnx"),
    "mean-of-three": ((LINEAR, W), {"mean": [0.5, 0.5, 0.5]}, "3 values for the 1 channels"),
    "std-zero": ((LINEAR, W), {"mean": [0.5], "std": [0.0]}, "--std"),
    "mean-nan": ((LINEAR, W), {"mean": [float("nan")]}, "--mean"),
    "range-nan": ((LINEAR, W), {"input_range": float("nan")}, "must be positive"),
    "range-infinite": ((LINEAR, W), {"input_range": float("inf")}, "--input-range"),
    "names-no-text": ("no-text", {}, "not an ONNX model|no UTF-8 text|cannot load"),
    "node-name-no-text": ("node-no-text", {}, "no UTF-8 text"),
    "layout": ((LINEAR, W), {"layout": "chwn"}, "must be nchw or nhwc"),
    "depends-on-batch": (
        ([node("ReduceMean", "x", "m", axes=[0]), node("Sub", "x m", "c"), node("Flatten", "c", "f"), node("MatMul", "f w", "y")],
         W), {}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(case, tmp_path):
    """One line, with the file or the option in it, and nothing left behind."""
    spec, hints, says = BAD[case]
    file = write(tmp_path / "foreign.onnx", spec)
    if says is None:  # the gate compares like with like; the self-test of certification is what sees it
        smx.export(file, out=tmp_path / "out", sigma=0.25, data="digits", **SMALL)
        with pytest.raises(smx.CheckFailed, match="self-test"):
            smx.certify(tmp_path / "out", data="digits", n=50, stop=3, out=tmp_path / "c.jsonl")
        return
    with pytest.raises((smx.BadInput, smx.CheckFailed, smx.Unavailable), match=says) as caught:
        smx.export(file, out=tmp_path / "out", sigma=0.25, data="digits", **hints, **SMALL)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.onnx"]


EXCHANGED = Path(onnx.__file__).parent / "backend" / "test" / "data"


def outcome(arguments, seconds=300):
    """Exit code and standard error of `smx`, in a process of its own."""
    command = [sys.executable, "-m", "smx_cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, done.stderr


def check_outcome(code, text):
    """A result, or one line that begins with our name; never a traceback, a defect or a signal."""
    lines = [line for line in text.splitlines() if line.startswith("smx: error: ")]
    assert code in (0, 2, 3, 4), text
    assert "Traceback" not in text
    assert len(lines) == (code != 0), text


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "light/light_squeezenet", "light/light_resnet50", "light/light_shufflenet", "light/light_densenet121",
    "pytorch-converted/test_Conv2d/model", "pytorch-converted/test_Linear/model", "pytorch-converted/test_ReLU/model",
    "pytorch-operator/test_operator_flatten/model", "pytorch-operator/test_operator_conv/model",
    "simple/test_sequence_model1/model", "simple/test_strnorm_model_monday_empty_output/model",
    "simple/test_gradient_of_add/model", "simple/test_expand_shape_model1/model",
])  # fmt: skip
def test_models_of_the_onnx_package(name, tmp_path):
    """Networks with random weights and single operators, as other people's exporters wrote them."""
    file = EXCHANGED / f"{name}.onnx"
    if not file.exists():
        pytest.skip(f"this release of onnx does not ship {name}")
    few = ["--parity-samples", 32, "--max-disagreement", 0.5]  # it is the file that is tried here, not the gate
    code, text = outcome(["export", file, "--sigma", 0.25, "--out", tmp_path / "out", *few])
    check_outcome(code, text)
    assert (code == 0) == (name.startswith("light/") or name.endswith("flatten/model")), text


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_damaged_exports_never_crash(digits_export, tmp_path, format):
    """Flipped bytes and cut ends, opened the way every command does."""
    rng, whole = random.Random(0), (digits_export / "model.onnx").read_bytes()
    engine = {"onnx": "ort", "openvino": "openvino"}[format]
    if engine == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    for i in range(18):  # each that is valid protobuf is tried in a child: half a second
        damaged = bytearray(whole[: rng.randrange(len(whole))] if i % 6 == 0 else whole)
        for _ in range(rng.choice([1, 2, 4])):
            # the graph is at the front and at the back; weights lie between and harm nobody
            at = rng.randrange(min(3000, len(damaged)))
            damaged[at if i % 2 else -1 - at] = rng.randrange(256)
        file = tmp_path / f"{i}.onnx"
        file.write_bytes(damaged)
        with contextlib.suppress(smx.BadInput):  # anything else is a defect; a signal ends this very process
            open_engine(open_artefact(file), engine, batch_size=8)


def test_damaged_export_is_one_line(digits_export, tmp_path):
    """A few, through the command line."""
    whole = (digits_export / "model.onnx").read_bytes()
    for name, content in {"cut": whole[:2000], "tail": whole[2000:], "zeros": bytes(4000)}.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(smx.BadInput) as caught:
            smx.export(tmp_path / f"{name}.onnx", out=tmp_path / "out", sigma=0.25)
        assert "\n" not in str(caught.value)


def test_crash_of_a_runtime_is_an_error(tmp_path, monkeypatch):
    """A signal in the child that tries a file is one line here."""
    from smoothmix_deploy.engines import trial

    file = model(tmp_path / "foreign.onnx", LINEAR, W)
    trial.check_in_child(file)
    monkeypatch.setattr(trial, "_passed", set())
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -ABRT $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(smx.BadInput, match="crashes ort \\(SIGABRT\\): a damaged or hostile file; refused"):
        trial.check_in_child(file)
    crashing.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(trial, "_SECONDS", 1)
    with pytest.raises(smx.BadInput, match="not done loading it after 1 s"):
        trial.check_in_child(file)


@pytest.mark.slow
def test_what_crashes_openvino_is_refused(digits_export, tmp_path):
    """Attributes, shapes and edges altered in valid protobuf: some of these end OpenVINO 2026.4's process."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    rng, whole = random.Random(0), onnx.load(digits_export / "model.onnx")
    extremes = [0, -1, 1, 2, 7, -(2**31), 2**31 - 1, 2**63 - 1, 65536]
    for i in range(60):
        altered = onnx.ModelProto()
        altered.CopyFrom(whole)
        nodes = list(altered.graph.node)
        if i % 3 == 0:
            lists = [a for n in nodes for a in n.attribute if a.ints]
            chosen = rng.choice(lists)
            chosen.ints[rng.randrange(len(chosen.ints))] = rng.choice(extremes)
        elif i % 3 == 1:
            tensor = rng.choice(list(altered.graph.initializer))
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(extremes)
        else:
            rng.choice(nodes).op_type = rng.choice(["Loop", "LSTM", "Scan", "GridSample", "Tile", "Resize", "TopK"])
        file = tmp_path / f"{i}.onnx"
        file.write_bytes(altered.SerializeToString())
        with contextlib.suppress(smx.BadInput):
            open_engine(open_artefact(file), "openvino", batch_size=8)
