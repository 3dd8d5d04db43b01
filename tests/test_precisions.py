"""fp16, bf16, int8, fp8: the file has the types it is said to have, the gate judges what they cost, every engine runs them."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import METADATA_KEY, open_artefact
from smoothmix_deploy.engines import available, open_engine
from smoothmix_deploy.exporting.half_precision import to_half
from smoothmix_deploy.exporting.inputs import find_images
from smoothmix_deploy.exporting.inspection import InputHints
from smoothmix_deploy.exporting.onnx_file import save_onnx
from smoothmix_deploy.exporting.parity import check_parity
from smoothmix_deploy.exporting.quantisation import calibration_batches, quantise
from smoothmix_deploy.exporting.source import open_source
from smoothmix_deploy.noise.gaussian import key_from_seed

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
IMAGES = (("x", TensorProto.FLOAT, ["batch", 1, 8, 8]),)


@pytest.fixture(scope="module")
def exports(digits_run, tmp_path_factory):
    """Export folders by precision, made when first asked for; those that no engine here runs are skipped."""
    made = {}

    def export(precision):
        if precision not in made:
            out = tmp_path_factory.mktemp("precisions") / precision
            try:
                made[precision] = smx.export(
                    digits_run, out=out, precision=precision, seed=0, max_disagreement=0.03
                ).path
            except smx.Unavailable as error:
                made[precision] = str(error)
        if isinstance(made[precision], str):
            pytest.skip(made[precision])
        return made[precision]

    return export


@pytest.fixture(scope="module")
def network(digits_run):
    """The digits classifier in our ONNX form, float32."""
    return open_source(digits_run, InputHints()).network()


def quantised(network, precision, folder, tensorrt=True):
    """`network` in int8 or fp8, calibrated on a few noisy digits."""
    images = find_images_of("train")
    return quantise(network, precision, calibration_batches(images, 0.25, 64, "0" * 32), folder, tensorrt=tensorrt)


def find_images_of(split):
    """Images of the digits."""
    from smoothmix_deploy.data import load_data

    return load_data("digits", split=split)


def float_weights(model, operators=("Conv", "Gemm", "MatMul")):
    """Element types of the stored tensors that these operators multiply with."""
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {stored[name] for n in model.graph.node if n.op_type in operators for name in n.input[1:] if name in stored}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_certifies_on_every_engine(exports, engine, precision, tmp_path):
    """The same certificates as float32, but for a vote here and there."""
    path = exports(precision)
    if available(engine)[0] is None:
        pytest.skip(available(engine)[1])
    artefact = open_artefact(path)
    try:
        open_engine(artefact, engine, batch_size=32)
    except (smx.BadInput, smx.Unavailable) as error:
        if precision != "bf16":  # the one that not every processor and runtime has
            raise
        pytest.skip(str(error))
    result = smx.certify(path, engine=engine, n=200, stop=40, seed=0, out=tmp_path / "c.jsonl")
    assert result.manifest.engine["precision"] == precision
    assert result.manifest.artefact["precision"] == precision
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 41  # the manifest's and one an image


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_manifest_and_metadata_say_the_precision(exports, precision):
    """In the folder, in the file, and of the file alone."""
    path = exports(precision)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["precision"] == manifest["parity"]["engine"]["precision"] == precision
    assert manifest["parity"]["passed"]
    assert manifest["parity"]["radius_lost"] <= manifest["parity"]["max_radius_lost"]
    inside = {p.key: p.value for p in onnx.load(path / "model.onnx").metadata_props}
    assert json.loads(inside[METADATA_KEY])["precision"] == precision
    if precision == "int8":
        said = manifest["calibration"]
        assert (said["samples"], said["sigma"]) == (512, 0.25)
        assert said["images"].endswith("digits (train)")


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_leaves_nothing_in_float32(network, precision):
    """All stored weights and everything between the casts at both ends."""
    model = to_half(network, precision)
    assert float_weights(model) == {HALF[precision]}
    assert not [t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert TensorProto.FLOAT not in types.values()
    for ends in (model.graph.input, model.graph.output):
        assert [v.type.tensor_type.elem_type for v in ends] == [TensorProto.FLOAT]


PRODUCTS = ("Conv", "Gemm", "MatMul")


@pytest.mark.parametrize(
    ("precision", "tensorrt", "stored", "activations"),
    [
        ("int8", True, TensorProto.INT8, TensorProto.INT8),
        ("fp8", True, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FN),
        ("int8", False, TensorProto.INT8, TensorProto.UINT8),
    ],
)
def test_quantised_round_every_product(network, precision, tensorrt, stored, activations, tmp_path):
    """Q/DQ on data and weights of each product but the first and the last; nothing on the logits."""
    model = quantised(network, precision, tmp_path, tensorrt)
    made_by = {name: node for node in model.graph.node for name in node.output}
    tensors = {t.name: t for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    assert len(products) == sum(node.op_type in PRODUCTS for node in network.graph.node) > 3
    for node in (products[0], products[-1]):
        assert tensors[node.input[1]].data_type == TensorProto.FLOAT
    for node in products[1:-1]:
        for name, kind in zip(node.input[:2], (activations, stored), strict=True):
            assert made_by[name].op_type == "DequantizeLinear", (node.name, name)
            zero = tensors[made_by[name].input[2]]
            assert zero.data_type == kind
            if tensorrt or kind == stored:  # TensorRT takes symmetric ranges only
                assert not numpy_helper.to_array(zero).astype(np.float32).any()
        weights = made_by[node.input[1]]
        assert numpy_helper.to_array(tensors[weights.input[1]]).size > 1  # per channel
        if tensorrt and len(node.input) > 2 and node.input[2] in tensors:
            assert tensors[node.input[2]].data_type == TensorProto.FLOAT
    assert made_by["logits"].op_type not in ("QuantizeLinear", "DequantizeLinear")
    used = {name for node in model.graph.node for name in node.input}
    assert set(tensors) <= used


def test_logits_are_not_rounded(exports):
    """More than 256 different scores: an argmax between steps of an eighth of a unit would be one of ties."""
    engine = open_engine(open_artefact(exports("int8")), batch_size=64)
    x = np.random.default_rng(0).random((64, *engine.info.input_shape), dtype=np.float32)
    assert len(np.unique(engine.logits(x))) > 300


def test_fp8_on_onnx_runtime_is_the_file(network, tmp_path):
    """What the gate compares where no GPU is: ONNX Runtime's optimiser would compute something else."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    files = {}
    for precision in ("fp32", "fp8"):
        files[precision] = tmp_path / f"{precision}.onnx"
        save_onnx(
            network if precision == "fp32" else quantised(network, "fp8", tmp_path),
            files[precision],
            {"precision": precision},
        )
    x = find_images_of("test").subset(range(64))
    x = (
        np.stack([x.image(i) for i in range(64)])
        + np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32) / 4
    )
    expected, found = (open_engine(open_artefact(f), "ort", batch_size=64).logits(x) for f in files.values())
    assert np.sqrt(np.square(found - expected).mean()) < 0.1 * expected.std()  # 3 bits of mantissa: about 5 %


def test_overflowing_weight_is_refused():
    """1e5 is no float16; bfloat16 has the range of float32."""
    model = plain([helper.make_node("Mul", ["x", "w"], ["y"])], [("w", np.array([1e5], np.float32))])
    with pytest.raises(smx.BadInput, match="w has values up to 100000"):
        to_half(model, "fp16")
    assert to_half(model, "bf16").graph.initializer[0].data_type == TensorProto.BFLOAT16


def test_infinite_weight_stays_infinite():
    """-inf is how masks are written; it is no overflow."""
    model = plain([helper.make_node("Max", ["x", "w"], ["y"])], [("w", np.array([-np.inf], np.float32))])
    assert np.isneginf(numpy_helper.to_array(to_half(model, "fp16").graph.initializer[0])).all()


def test_nothing_to_convert_or_quantise(tmp_path):
    """A network without weights cannot be of another precision: refused, not passed on as it was."""
    pool = plain([helper.make_node("GlobalAveragePool", ["x"], ["y"])], [])
    for precision in HALF:
        with pytest.raises(smx.BadInput, match="no float32 weights"):
            to_half(pool, precision)
    for precision in ("int8", "fp8"):
        with pytest.raises(smx.BadInput, match="none of Conv, Gemm, MatMul"):
            quantise(pool, precision, iter([np.zeros((2, 1, 8, 8), np.float32)]), tmp_path, tensorrt=False)
    assert list(tmp_path.iterdir()) == []  # no scratch left


@pytest.mark.parametrize("wanted", ["int8", "fp16", "fp32"])
def test_int8_is_not_converted_again(exports, wanted, tmp_path):
    """int8 of int8 would measure ranges of rounded weights; back to float32 there is no way."""
    file = exports("int8") / "model.onnx"
    if wanted == "int8":  # asked for what it is: it is passed on, not quantised a second time
        again = smx.export(file, out=tmp_path / "out", precision="int8", seed=0, max_disagreement=0.03).path
        kinds = [Counter(n.op_type for n in onnx.load(f).graph.node) for f in (file, again / "model.onnx")]
        assert kinds[0]["QuantizeLinear"] == kinds[1]["QuantizeLinear"]
        return
    with pytest.raises(smx.BadInput, match="the source is int8 already; export from its run folder"):
        smx.export(file, out=tmp_path / "out", precision=wanted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "says"), [
    ({"precision": "fp8"}, "only TensorRT runs it"),
    ({"precision": "int4"}, "must be one of fp32, fp16, bf16, int8, fp8"),
    ({"precision": "int8", "calibration_samples": 0}, "calibration-samples 0: must be at least 1"),
])  # fmt: skip
def test_wrong_options(digits_run, tmp_path, arguments, says):
    """One line each."""
    with pytest.raises(smx.BadInput, match=says):
        smx.export(digits_run, out=tmp_path / "out", **arguments)


def plain(nodes, initializers, opset=17, output_shape=("batch", 1, None, None)):
    """A model of images [batch, 1, 8, 8]."""
    graph = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info(*item) for item in IMAGES],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(output_shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def branch(name, factor, uses="x"):
    """A graph for If: `factor` times `uses`, a value of the graph around it."""
    constant = helper.make_node("Constant", [], [f"{name}_f"], value_floats=[factor])
    nodes = [constant, helper.make_node("Mul", [uses, f"{name}_f"], [f"{name}_y"])]
    output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 1, 8, 8])
    return helper.make_graph(nodes, name, [], [output])


def odd_graphs():
    """Graphs whose float32 hides in places other than stored tensors."""
    one = np.array([1.5], np.float32)
    scales = ("scales", np.array([1, 1, 2, 2], np.float32))
    return {
        "constant": ([
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(one)),
            helper.make_node("Constant", [], ["d"], value_float=0.25),
            helper.make_node("Mul", ["x", "c"], ["h"]), helper.make_node("Add", ["h", "d"], ["y"]),
        ], []),
        "cast": ([
            helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["f", "w"], ["y"]),
        ], [("w", one)]),
        "constant-of-shape": ([
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(one)),
            helper.make_node("Mul", ["x", "c"], ["h"]), helper.make_node("Mul", ["h", "w"], ["y"]),
        ], [("w", one)]),
        "resize": ([
            helper.make_node("Mul", ["x", "w"], ["h"]),
            helper.make_node("Resize", ["h", "", "scales"], ["y"], mode="nearest"),
        ], [("w", one), scales]),
        "resize-constant": ([
            helper.make_node("Mul", ["x", "w"], ["h"]),
            helper.make_node("Constant", [], ["k"], value_floats=[1.0, 1.0, 2.0, 2.0]),
            helper.make_node("Resize", ["h", "", "k"], ["y"], mode="nearest"),
        ], [("w", one)]),
        "resize-computed": ([  # scales that are computed from shapes, as exporters write them
            helper.make_node("Mul", ["x", "w"], ["h"]),
            helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Cast", ["s"], ["sf"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["sf", "sf"], ["k"]),
            helper.make_node("Resize", ["h", "", "k"], ["y"], mode="nearest"),
        ], [("w", one)]),
        "if": ([
            helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("If", ["yes"], ["h"], then_branch=branch("t", 2.0), else_branch=branch("e", 3.0)),
            helper.make_node("Mul", ["h", "w"], ["y"]),
        ], [("w", one)]),
        "output-used-inside": ([
            helper.make_node("Mul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["unused"]),
        ], [("w", one)]),
        "clashing-names": ([
            helper.make_node("Mul", ["x", "w"], ["x_cast"]), helper.make_node("Identity", ["x_cast"], ["y_half"]),
            helper.make_node("Identity", ["y_half"], ["y"]),
        ], [("w", one)]),
        "hard-swish": ([
            helper.make_node("Mul", ["x", "w"], ["h"]), helper.make_node("HardSwish", ["h"], ["y"]),
        ], [("w", one * 2)]),
        "random": ([
            helper.make_node("EyeLike", ["m"], ["e"], dtype=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "e"], ["y"]),
        ], [("m", np.zeros((8, 8), np.float32))]),
        "shared-constant": ([  # one tensor is a summand and the scales of a Resize, which must stay float32
            helper.make_node("ReduceSum", ["scales"], ["total"], keepdims=0), helper.make_node("Add", ["x", "total"], ["h"]),
            helper.make_node("Resize", ["h", "", "scales"], ["y"], mode="nearest"),
        ], [scales]),
    }  # fmt: skip


@pytest.mark.parametrize("case", odd_graphs())
def test_half_precision_of_odd_graphs(case):
    """Constants, casts, resizes and nested graphs become half precision, and compute the same; or are refused."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    nodes, stored = odd_graphs()[case]
    model = plain(nodes, stored)
    x = (np.random.default_rng(0).random((2, 1, 8, 8)) * 3).astype(np.float32)
    expected = run(ort, model, x)
    half = to_half(model, "fp16")
    np.testing.assert_allclose(run(ort, half, x), expected, rtol=5e-3, atol=5e-3)


def run(ort, model, x):
    """The model's output for `x`."""
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_calibration_sees_noisy_training_images(digits_run, tmp_path, monkeypatch):
    """What the deployed network sees: images of the training split plus noise of the model's sigma."""
    from smoothmix_deploy.exporting import quantisation

    seen = []

    def record(model, precision, batches, folder, *, tensorrt):
        seen.extend(batches)
        raise smx.BadInput("enough")

    monkeypatch.setattr(quantisation, "quantise", record)
    with pytest.raises(smx.BadInput, match="enough"):
        smx.export(digits_run, out=tmp_path / "out", precision="int8", seed=7, calibration_samples=300)
    x = np.concatenate(seen)
    assert x.shape == (300, 1, 8, 8)
    facts = open_source(digits_run, InputHints()).facts
    clean, described = find_images(facts, None, None, False, split="train")
    assert described.endswith("(train)")
    noise = x[: len(clean)] - np.stack([clean.image(i) for i in range(len(clean))])
    assert abs(noise.std() - 0.25) < 0.005
    assert abs(noise.mean()) < 0.005
    assert not np.array_equal(x[0], x[len(clean)])  # the second round has noise of its own
    again = np.concatenate(list(calibration_batches(clean, 0.25, 300, key_from_seed(7))))
    np.testing.assert_array_equal(x, again)


def test_gate_by_radius_lost(digits_run):
    """Votes that mostly agree, and an artefact whose radii are smaller all the same."""
    real = open_engine(open_artefact(digits_run), "torch", batch_size=64)
    images, described = find_images(open_source(digits_run, InputHints()).facts, None, None, False, split="test")

    class Flips:
        """Every 37th vote goes to the next class."""

        def __init__(self):
            self.info, self.seen = real.info, 0

        def logits(self, x):
            logits = real.logits(x).copy()
            rows = [row for row in range(len(x)) if (self.seen + row) % 37 == 0]
            logits[rows] = np.roll(logits[rows], 1, axis=1)
            self.seen += len(x)
            return logits

    arguments = {"sigma": 0.25, "samples": 2048, "max_disagreement": 0.06, "key": "0" * 32}
    lenient = check_parity(real, Flips(), images, described, **arguments)
    assert lenient.passed
    assert lenient.radius_lost > 0.05
    assert lenient.mean_radius < lenient.mean_radius_reference
    strict = check_parity(real, Flips(), images, described, max_radius_lost=0.05, **arguments)
    assert not strict.passed
    assert strict.upper_bound <= strict.max_disagreement  # the votes alone would have let it through
    assert check_parity(real, real, images, described, max_radius_lost=0.0, **arguments).passed


class PairwiseInt16:
    """A quantised linear classifier: wide sums of uint8 x int8, with or without 16-bit saturation of pairs."""

    def __init__(self, info, weights_KD, saturate):
        self.info, self._w, self._saturate = info, weights_KD, saturate

    def logits(self, x_BCHW):
        """[B, K]."""
        x = np.clip(np.rint(x_BCHW.reshape(len(x_BCHW), -1) * 127) + 128, 0, 255).astype(np.int32)
        products = x[:, None, :] * self._w[None]
        pairs = products[..., 0::2] + products[..., 1::2]
        if self._saturate:
            pairs = np.clip(pairs, -32768, 32767)
        total = pairs.sum(axis=2) - 128 * self._w.sum(axis=1)
        return (total / 4096).astype(np.float32)


def test_gate_refuses_pairwise_saturation(digits_run):
    """What int8 kernels without VNNI do to large weights: the very same weights pass without it."""
    real = open_engine(open_artefact(digits_run), "torch", batch_size=64)
    rng = np.random.default_rng(0)
    weights = np.clip(np.rint(rng.normal(size=(10, 64)) * 100), -127, 127).astype(np.int32)
    exact, wrong = (PairwiseInt16(real.info, weights, saturate) for saturate in (False, True))
    images, described = find_images(open_source(digits_run, InputHints()).facts, None, None, False, split="test")
    arguments = {"sigma": 0.25, "samples": 1024, "max_disagreement": 0.01, "key": "0" * 32, "max_radius_lost": 0.05}
    assert check_parity(exact, exact, images, described, **arguments).passed
    report = check_parity(exact, wrong, images, described, **arguments)
    assert not report.passed
    assert report.rate > 0.02
