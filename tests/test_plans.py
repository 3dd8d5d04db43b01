"""TensorRT plans, built without a GPU by tensorrt_rtx: what they are made of, and who refuses them."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import save
from test_export import make_run

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.engines import trt as trt_engine
from smoothmix_deploy.engines import trt_bindings
from smoothmix_deploy.exporting.plan_file import LAYER_TYPES, RTX_CAPABILITIES
from smoothmix_deploy.files import sha256_file

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
PRECISIONS = ["fp32", "fp16", "bf16", "int8", "fp8"]
PACKAGE = Path(smx.__file__).parent
LOOSE = {"parity_samples": 1000, "max_disagreement": 0.05, "seed": 0}
"""A gate for untrained networks, whose votes are near ties."""


@pytest.fixture(scope="module")
def plans(digits_run, tmp_path_factory):
    """Export folders of the digits classifier by precision, built when first asked for."""
    made = {}

    def export(precision):
        if precision not in made:
            out = tmp_path_factory.mktemp("plans") / precision
            made[precision] = smx.export(digits_run, out=out, format="trt", precision=precision, **LOOSE).path
        return made[precision]

    return export


def check_plan_folder(folder, precision):
    """Files, digests and the plan's own record."""
    manifest = json.loads((folder / "manifest.json").read_text())
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == present
    assert {"model.plan", "model.onnx"} <= present
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == sha256_file(folder / name)
        assert entry["bytes"] == (folder / name).stat().st_size > 0
    assert (manifest["artefact"], manifest["format"], manifest["precision"]) == ("model.plan", "trt", precision)
    plan = manifest["plan"]
    assert plan["package"] in trt_bindings.PACKAGES
    assert plan["version"] == trt_bindings.libraries_version(plan["package"])
    assert plan["profile"]["min"] == 1
    assert plan["profile"]["opt"] == plan["profile"]["max"] == manifest["max_batch"]
    assert plan["tf32"] is False
    named = " ".join(plan["layer_types"]).upper()
    assert LAYER_TYPES[precision].upper() in named, plan["layer_types"]
    if not torch.cuda.is_available():
        assert (plan["gpu"], plan["compute_capabilities"]) == (None, list(RTX_CAPABILITIES))
        assert manifest["parity"]["passed"] is None
        assert "GPU" in manifest["parity"]["pending"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_plans_of_digits(plans, precision):
    """All five precisions, each named by TensorRT's own layers."""
    check_plan_folder(plans(precision), precision)


def test_half_precision_has_no_float_convolutions(plans):
    """Strong typing: what the ONNX file says, and float32 for the images and the logits only."""
    layers = (plans("fp16") / "layers.txt").read_text()
    assert "Half" in layers
    products = [line for line in layers.splitlines() if "LayerType: correlation" in line or "LayerType: gemm" in line]
    assert products
    for line in products:
        for name, size, kind in re.findall(r"Name: (\S+), Dimensions: \[([-\d,]*)\],.*?Datatype: (\w+)", line):
            assert kind == "Half" or size == "1" or name == "logits", line  # single numbers are scales of 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(("arch", "shape"), [
    ("lenet", (1, 28, 28)), ("cifar-resnet20", (3, 32, 32)), ("cifar-resnet110", (3, 32, 32)),
    ("resnet50", (3, 224, 224)), ("timm:mobilenetv3_small_100", (3, 224, 224)),
])  # fmt: skip
def test_plans_of_larger_networks(tmp_path, arch, shape, precision):
    """The networks that people deploy."""
    if arch.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    run = make_run(tmp_path / "run", arch, shape, None, "npz:nowhere.npz")
    loose = {
        "parity_samples": 32,
        "max_disagreement": 0.99,
        "max_radius_lost": 0.99,
        "calibration_samples": 16,
        "seed": 0,
    }
    out = smx.export(run, out=tmp_path / "out", format="trt", precision=precision, max_batch=8, **loose).path
    check_plan_folder(out, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the plan is checked at once")
def test_pending_plan_is_not_run(plans, tmp_path):
    """Exit code 3 or 4, one line, with what builds it where it can run."""
    command = [sys.executable, "-m", "smx_cli", "certify", str(plans("fp32")), "--out", str(tmp_path / "c.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (3, 4)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("smx: error: ")
    assert not (tmp_path / "c.jsonl").exists()


def test_pending_plan_names_its_rebuild_command(plans, monkeypatch):
    """Where TensorRT works, it is the missing gate that refuses it; the command in the message works on that file."""
    from smoothmix_deploy import engines

    monkeypatch.setattr(engines, "available", lambda name: ("1", ""))
    artefact = replace(open_artefact(plans("fp32")), gated=False)
    with pytest.raises(smx.CheckFailed, match=r"smx export .*model\.onnx --format trt --out NEW_FOLDER") as caught:
        engines.open_engine(artefact, "trt")
    named = str(caught.value).split("smx export ")[1].split(" --format")[0]
    assert open_artefact(named).kind == "onnx"


def test_rebuild_command_works(plans, tmp_path):
    """From the ONNX file of the folder to a new plan, with the precision that it has."""
    again = smx.export(plans("fp16") / "model.onnx", out=tmp_path / "new", format="trt", **LOOSE).path
    check_plan_folder(again, "fp16")


def test_export_into_the_same_folder(digits_run, tmp_path):
    """A second export replaces the first, whatever its format."""
    for format, precision in (("trt", "fp32"), ("trt", "fp16"), ("onnx", "fp32"), ("trt", "fp32")):
        smx.export(digits_run, out=tmp_path / "out", format=format, precision=precision, **LOOSE)
    check_plan_folder(tmp_path / "out", "fp32")


def test_loose_plan_is_refused(plans, tmp_path):
    """A plan is code: nobody says for which GPU this one is."""
    (tmp_path / "loose.plan").write_bytes((plans("fp32") / "model.plan").read_bytes())
    with pytest.raises(smx.BadInput, match=r"no manifest\.json beside it lists it"):
        open_artefact(tmp_path / "loose.plan")


@pytest.mark.parametrize("name", ["model.plan"])
def test_altered_plan_is_refused(plans, tmp_path, name):
    """Before a byte of it is loaded."""
    import shutil

    copy = Path(shutil.copytree(plans("fp32"), tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(smx.CheckFailed, match="SHA-256"):
        open_artefact(copy)


def test_unsupported_operator_is_named(tmp_path):
    """One line: which node, which operator, TensorRT's reason."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Unique", ["flat"], ["u", "", "inverse"], name="the_node", axis=1),
        helper.make_node("Cast", ["inverse"], ["i"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["flat", "w"], ["s"]),
        helper.make_node("ReduceSum", ["i"], ["sum"], keepdims=0),
        helper.make_node("Add", ["s", "sum"], ["y"]),
    ]
    w = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    file = save(
        tmp_path / "strange.onnx", nodes, [("w", w)], inputs=(("x", TensorProto.FLOAT, ["batch", 1, 8, 8]),),
        output_shape=("batch", 10),
    )  # fmt: skip
    with pytest.raises(smx.BadInput, match="TensorRT cannot take the network") as caught:
        smx.export(file, out=tmp_path / "out", format="trt", sigma=0.25, **LOOSE)
    message = str(caught.value)
    assert "the_node" in message
    assert "Unique" in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["strange.onnx"]


@pytest.mark.parametrize(("change", "says"), [
    ({}, None),
    ({"package": "tensorrt_llm"}, "does not say which TensorRT built"),
    ({"package": None}, "does not say which TensorRT built"),
    ({"version": "0.0.1"}, r"was built with tensorrt_rtx 0\.0\.1, here is"),
    ({"version": None}, "was built with tensorrt_rtx None"),
    ({"compute_capabilities": ["9.0"]}, r"was built for compute capability \['9\.0'\], this GPU \(Card\) has 8\.6"),
    ({"compute_capabilities": None}, "was built for compute capability None"),
    ({"compute_capabilities": "8.6"}, "was built for compute capability 8.6"),
    ({"gpu": "Other Card"}, "was built on Other Card, this GPU is Card"),
    ({"gpu": "Card"}, None),
])  # fmt: skip
def test_foreign_plan_is_refused(plans, monkeypatch, change, says):
    """Another TensorRT, GPU or nobody's: refused before loading, with the command that rebuilds it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Card")
    monkeypatch.setattr(trt_bindings, "load", lambda package: SimpleNamespace(__version__="1.7"))
    monkeypatch.setattr(trt_bindings, "libraries_version", lambda package: "1.7.1.116")
    known = {
        "package": "tensorrt_rtx",
        "version": "1.7.1.116",
        "gpu": None,
        "compute_capabilities": list(RTX_CAPABILITIES),
    }
    artefact = replace(open_artefact(plans("fp32")), plan={**known, **change})
    if says is None:
        assert trt_engine.check_plan(artefact) == "tensorrt_rtx"
        return
    with pytest.raises(smx.CheckFailed, match=says) as caught:
        trt_engine.check_plan(artefact)
    if "does not say" not in says:
        assert artefact.rebuild_command in str(caught.value)


def test_plan_of_a_missing_package_is_unavailable(plans, monkeypatch):
    """Exit code 4 and the extra, not a traceback."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    artefact = replace(open_artefact(plans("fp32")), plan={"package": "tensorrt", "version": "10.16"})
    with pytest.raises(smx.Unavailable, match="smoothmix-deploy"):
        trt_engine.check_plan(artefact)


# What our variables are, by the name they have in the sources.
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "profile": "IOptimizationProfile",
    "parser": "OnnxParser", "error": "ParserError", "image": "ITensor", "inspector": "EngineInspector",
    "engine": "ICudaEngine", "_engine": "ICudaEngine", "_context": "IExecutionContext", "_runtime": "Runtime",
}  # fmt: skip


def attributes(tree):
    """(owner's name, attribute) of `a.b` and `self.a.b`; (module, attribute, ...) of `trt.A.B`."""
    for item in ast.walk(tree):
        if not isinstance(item, ast.Attribute):
            continue
        owner = item.value
        if isinstance(owner, ast.Name):
            yield owner.id, item.attr
        elif isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name):
            if owner.value.id == "self":
                yield owner.attr, item.attr
            elif owner.value.id in ("trt", "module"):
                yield f"trt.{owner.attr}", item.attr


@pytest.mark.parametrize("source", ["engines/trt.py", "engines/trt_bindings.py", "exporting/plan_file.py"])
def test_bindings_have_what_we_use(source):
    """Every attribute of a TensorRT object in our code exists in the installed binding: most of it cannot run without a GPU."""
    trt, checked, missing = tensorrt_rtx, 0, []
    names = dict(CLASSES)
    if source == "engines/trt.py":
        names["config"] = "IRuntimeConfig"
        del names["error"]
    for owner, attribute in attributes(ast.parse((PACKAGE / source).read_text(encoding="utf-8"))):
        if owner == "trt":
            where = trt
        elif owner.startswith("trt."):
            where = getattr(trt, owner[4:], None)
        elif owner in names:
            where = getattr(trt, names[owner])
        else:
            continue
        checked += 1
        if not hasattr(where, attribute):
            missing.append(f"{owner}.{attribute}")
    assert checked >= {"engines/trt.py": 20, "engines/trt_bindings.py": 1, "exporting/plan_file.py": 20}[source]
    assert missing == []
