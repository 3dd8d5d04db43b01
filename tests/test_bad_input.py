"""Wrong input of every kind: one clear line on stderr, the promised exit code, and nothing left behind."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import half_space, save
from PIL import Image
from smx_cli import main as cli

IMAGES = (("x", TensorProto.FLOAT, ["batch", 1, 8, 8]),)
SCORES = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1)]
WEIGHTS = [("w", np.eye(10, 64, dtype=np.float32)), ("b", np.zeros(10, np.float32))]


class Code:
    """Runs when unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("code-was-run"),)


def altered(source, target, file, change):
    """A copy of a folder with one JSON file changed, or any file replaced by bytes."""
    shutil.copytree(source, target)
    path = target / file
    if callable(change):
        path.write_bytes(change(path.read_bytes()))
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.fixture(scope="session")
def files(tmp_path_factory, digits_run, digits_export):
    """A folder full of files that are not what they should be."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty-folder").mkdir()
    (root / "text").write_text("hello")
    for suffix in ("onnx", "npz", "png", "pth", "jsonl"):
        (root / f"zero.{suffix}").write_bytes(b"")
        (root / f"random.{suffix}").write_bytes(np.random.default_rng(0).bytes(3000))
        (root / f"folder.{suffix}").mkdir()
    _arrays(root)
    _networks(root, digits_export)
    _pictures(root)
    for name, change in (("manifest-cut", lambda b: b[:300]), ("manifest-list", lambda b: b"[]")):
        altered(digits_export, root / name, "manifest.json", change)
    altered(digits_export, root / "altered", "model.onnx", lambda b: b[:-2000] + bytes([b[-2000] ^ 1]) + b[-1999:])
    for name, change in {
        "kind": {"kind": "x"}, "escapes": {"artefact": "../model.onnx"}, "unlisted": {"files": {}},
        "max-batch": {"max_batch": 4}, "sigma-null": {"sigma": None}, "sigma-zero": {"sigma": 0},
        "sigma-text": {"sigma": "x"}, "sigma-list": {"sigma": [1]},
        "digest-null": {"files": {"model.onnx": {"sha256": None}}},
        "max-batch-text": {"max_batch": "x"}, "data-text": {"data": "digits"}, "data-number": {"data": {"name": 5}},
        "names-short": {"class_names": ["a"]}, "names-number": {"class_names": 3}, "version": {"format_version": 9},
    }.items():  # fmt: skip
        altered(digits_export, root / f"export-{name}", "manifest.json", change)
    for name, change in {
        "arch": {"arch": "nope"}, "classes": {"num_classes": 7}, "shape": {"input_shape": [1, 9, 9]},
        "version": {"format_version": 2}, "arch-null": {"arch": None}, "sigma-text": {"sigma": "x"},
        "sigma-zero": {"sigma": 0}, "mean": {"mean_sd": [[1], [2], [3]]}, "data-null": {"data": None},
        "data-text": {"data": "digits"}, "names-short": {"class_names": ["a"]},
    }.items():  # fmt: skip
        altered(digits_run, root / f"run-{name}", "config.json", change)
    for name, change in {"cut": lambda b: b[: len(b) // 2], "zero": lambda b: b"", "nan": _nan_weights}.items():
        altered(digits_run, root / f"weights-{name}", "model.safetensors", change)
    altered(digits_run, root / "config-zero", "config.json", lambda b: b"")
    altered(digits_run, root / "config-binary", "config.json", lambda b: b"\xff\xfe\x00")
    altered(digits_run, root / "config-deep", "config.json", lambda b: b"[" * 200_000)
    for name, change in {"cut": lambda b: b[: len(b) // 2], "zero": lambda b: b""}.items():
        altered(digits_run, root / f"state-{name}", "state.pt", change)
    altered(digits_run, root / "no-weights", "metrics.jsonl", lambda b: b)
    (root / "no-weights" / "model.safetensors").unlink()
    torch.save({"arch": "digits-cnn", "state_dict": {"a": Code()}}, root / "code.pth")
    torch.save([1, 2], root / "list.pth")
    return root


def _arrays(root):
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 8, 8), np.float32), rng.integers(0, 10, 20)
    nan, infinite = x.copy(), x.copy()
    nan[3, 2, 2], infinite[3, 2, 2] = np.nan, np.inf
    for name, arrays in {
        "good": (x, y), "nan": (nan, y), "infinite": (infinite, y), "bytes-as-floats": (x * 255, y),
        "below": (x - 1, y),
        "integers": ((x * 255).astype(int), y), "bools": (x > 0.5, y),
        "objects": (np.array([x[0], None], object), y[:2]),
        "code": (np.array([Code()], object), y[:1]), "flat": (x[:, 0], y), "none": (x[:0], y[:0]),
        "other-size": (np.zeros((20, 9, 9), np.float32), y), "colour": (np.zeros((20, 8, 8, 3), np.float32), y),
        "label-high": (x, y + 5), "label-negative": (x, y - 5), "label-float": (x, y / 1), "label-short": (x, y[:5]),
        "label-huge": (x, np.full(20, 2**62)), "one-class": (x, y * 0),
    }.items():  # fmt: skip
        np.savez(root / f"{name}.npz", x=arrays[0], y=arrays[1])
    np.savez(root / "no-y.npz", x=x)
    whole = (root / "good.npz").read_bytes()
    (root / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (root / "flipped.npz").write_bytes(whole[:900] + bytes([whole[900] ^ 255]) + whole[901:])
    (root / "pickle.npz").write_bytes(pickle.dumps(Code()))
    np.save(root / "single.npy", x)
    shutil.copy(root / "single.npy", root / "single.npz")
    with zipfile.ZipFile(root / "texts.npz", "w") as archive:
        archive.writestr("x", "hello")
        archive.writestr("y", "hello")


def _networks(root, export):
    whole = (export / "model.onnx").read_bytes()
    (root / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    save(root / "good.onnx", SCORES, WEIGHTS, inputs=IMAGES, output_shape=("batch", 10))
    extra = (*IMAGES, ("z", TensorProto.FLOAT, ["batch", 1]))
    nodes = [
        *SCORES[:1],
        helper.make_node("Gemm", ["flat", "w", "b"], ["h"], transB=1),
        helper.make_node("Add", ["h", "z"], ["y"]),
    ]
    save(root / "two-inputs.onnx", nodes, WEIGHTS, inputs=extra, output_shape=("batch", 10))
    integers = [helper.make_node("Cast", ["i"], ["x"], to=TensorProto.FLOAT), *SCORES]
    save(
        root / "int-input.onnx",
        integers,
        WEIGHTS,
        inputs=(("i", TensorProto.INT64, ["batch", 1, 8, 8]),),
        output_shape=("batch", 10),
    )
    save(
        root / "flat-input.onnx",
        SCORES[1:],
        WEIGHTS,
        inputs=(("flat", TensorProto.FLOAT, ["batch", 64]),),
        output_shape=("batch", 10),
    )
    save(
        root / "free-size.onnx",
        SCORES,
        WEIGHTS,
        inputs=(("x", TensorProto.FLOAT, ["batch", 1, "h", "w"]),),
        output_shape=("batch", 10),
    )
    fixed = (("x", TensorProto.FLOAT, [16, 1, 8, 8]),)
    save(root / "fixed-batch.onnx", SCORES, WEIGHTS, inputs=fixed, output_shape=(16, 10))
    save(
        root / "image-output.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        inputs=IMAGES,
        output_shape=("batch", 1, 8, 8),
    )
    one = [("w", np.ones((1, 64), np.float32)), ("b", np.zeros(1, np.float32))]
    save(root / "one-class.onnx", SCORES, one, inputs=IMAGES, output_shape=("batch", 1))
    half_space(root / "other-size.onnx", np.ones(8), 4.0)
    custom = onnx.load(str(root / "good.onnx"))
    custom.graph.node[1].op_type, custom.graph.node[1].domain = "Frobnicate", "acme"
    custom.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(custom, str(root / "custom-op.onnx"))
    for kind in ("BOOL", "STRING"):
        number = getattr(TensorProto, kind)
        model = onnx.load(str(root / "good.onnx"))
        model.graph.node[1].output[0] = "h"
        model.graph.node.append(helper.make_node("Cast", ["h"], ["y"], to=number))
        model.graph.output[0].type.tensor_type.elem_type = number
        onnx.save(model, str(root / f"{kind.lower()}-output.onnx"))
    onnx.save(
        onnx.load(str(root / "good.onnx")),
        str(root / "outside.onnx"),
        save_as_external_data=True,
        location="outside.data",
        size_threshold=0,
    )
    shutil.copy(root / "outside.onnx", root / "empty-folder" / "outside.onnx")
    for name, text in {
        "not-json": "{",
        "list": "[1]",
        "null": "null",
        "sigma-text": '{"sigma": "x"}',
        "data-text": '{"sigma": 1, "data": "x"}',
    }.items():
        model = onnx.load(str(root / "good.onnx"))
        helper.set_model_props(model, {"smoothmix_deploy": text})
        onnx.save(model, str(root / f"metadata-{name}.onnx"))


def _pictures(root):
    grey = Image.fromarray(np.full((8, 8), 128, np.uint8))
    grey.save(root / "good.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "other-size.png")
    (root / "cut.png").write_bytes((root / "good.png").read_bytes()[:40])
    for name in ("pictures", "pictures-cut", "pictures-test-only"):
        for k in range(10):
            folder = root / name / ("test" if name == "pictures-test-only" else "") / str(k)
            folder.mkdir(parents=True)
            grey.save(folder / "a.png")
    shutil.copy(root / "cut.png", root / "pictures-cut" / "3" / "a.png")


def _nan_weights(content):
    from safetensors.torch import load, save

    state = load(content)
    next(iter(state.values())).view(-1)[0] = float("nan")
    return save(state)


def tree(folder):
    """Every path below a folder."""
    return {path.relative_to(folder) for path in folder.rglob("*")}


def refused(arguments, code, words, *, capfd, cwd, files, monkeypatch, digits_run, digits_export):
    """Run a command in the empty folder `cwd` and check everything that is promised of a refusal."""
    monkeypatch.chdir(cwd)
    places = {"FILES": files, "RUN": digits_run, "EXPORT": digits_export}
    words_of = []
    for word in arguments.split():
        for name, path in places.items():
            word = word.replace(name, str(path))
        words_of.append("" if word == "''" else word)
    before = tree(files)
    found = cli._run(words_of, debug=False)
    out, err = capfd.readouterr()
    assert found == code, err
    assert "Traceback" not in err
    assert out == ""
    if "Usage:" not in err:
        lines = [line for line in err.splitlines() if line.startswith("smx: error: ")]
        assert len(lines) == 1
        assert err.rstrip().endswith(lines[0])
        err = lines[0]
    for word in words if isinstance(words, tuple) else (words,):
        assert word in err
    assert tree(files) == before
    assert not list(cwd.rglob("*.jsonl"))
    assert not [path for path in cwd.rglob("*") if path.name.startswith(".") or path.name == "code-was-run"]


@pytest.fixture
def check(capfd, tmp_path, files, monkeypatch, digits_run, digits_export):
    """`refused` with the fixtures filled in."""

    def run(arguments, code, words):
        refused(arguments, code, words, capfd=capfd, cwd=tmp_path, files=files, monkeypatch=monkeypatch,
                digits_run=digits_run, digits_export=digits_export)  # fmt: skip

    return run


ARTEFACTS = [
    ("nope", 2, "nope: no such file or folder"),
    ("FILES/text", 2, "not a run folder, an export folder, or an .onnx"),
    ("FILES/empty-folder", 2, "neither a run folder"),
    ("FILES/folder.onnx", 2, "neither a run folder"),
    ("FILES/zero.onnx", 2, "zero.onnx"),
    ("FILES/random.onnx", 2, "not an ONNX model, or a damaged one"),
    ("FILES/cut.onnx", 2, "not an ONNX model, or a damaged one"),
    ("FILES/two-inputs.onnx", 2, ("one float32 image input", "x: ", "z: ")),
    ("FILES/int-input.onnx", 2, ("one float32 image input", "int64")),
    ("FILES/flat-input.onnx", 2, ("one float32 image input", "64")),
    ("FILES/free-size.onnx", 2, "its image size is not fixed"),
    ("FILES/image-output.onnx", 2, "expected class scores"),
    ("FILES/one-class.onnx", 2, "expected class scores"),
    ("FILES/custom-op.onnx", 2, "Frobnicate"),
    ("FILES/other-size.onnx", 2, ("images are 1x8x8", "the model takes 1x2x4")),
    ("FILES/fixed-batch.onnx --batch-size 8", 2, ("--batch-size 8", "batches of 16 only")),
    ("FILES/empty-folder/outside.onnx", 2, "outside.data"),
    ("FILES/metadata-not-json.onnx", 2, "not JSON"),
    ("FILES/manifest-cut", 2, ("manifest.json", "not valid JSON")),
    ("FILES/manifest-list", 2, ("manifest.json", "expected a JSON object")),
    ("FILES/export-kind", 2, "not an export manifest"),
    ("FILES/export-escapes", 2, "manifest.json"),
    ("FILES/export-unlisted", 2, ("manifest.json", "no SHA-256 of model.onnx")),
    ("FILES/export-max-batch --batch-size 5", 2, ("--batch-size 5", "at most 4")),
    ("FILES/export-sigma-zero", 2, ("manifest.json", "sigma")),
    ("FILES/altered", 3, ("model.onnx", "SHA-256", "export again")),
    ("FILES/altered/model.onnx", 3, ("SHA-256", "export again")),
    ("FILES/weights-cut", 2, "not a readable safetensors file"),
    ("FILES/weights-zero", 2, "not a readable safetensors file"),
    ("FILES/weights-nan", 2, ("NaN or infinite weights", "cannot be certified")),
    ("FILES/no-weights", 2, "model.safetensors is missing"),
    ("FILES/config-zero", 2, ("config.json", "not valid JSON")),
    ("FILES/config-binary", 2, ("config.json", "not valid JSON")),
    ("FILES/run-arch", 2, "--arch nope: unknown"),
    ("FILES/run-classes", 2, ("config.json", "class_names")),
    ("FILES/run-shape", 2, "images are 1x8x8, the model takes 1x9x9"),
    ("FILES/run-version", 2, "format version 1"),
    ("FILES/bool-output.onnx", 2, "expected class scores"),
    ("FILES/string-output.onnx", 2, "expected class scores"),
    ("FILES/outside.onnx", 2, "outside"),
    ("FILES/metadata-list.onnx", 2, "metadata"),
    ("FILES/metadata-null.onnx", 2, "metadata"),
    ("FILES/metadata-sigma-text.onnx", 2, "sigma"),
    ("FILES/metadata-data-text.onnx", 2, "metadata"),
    ("FILES/export-sigma-text", 2, ("manifest.json", "sigma")),
    ("FILES/export-sigma-list", 2, ("manifest.json", "sigma")),
    ("FILES/export-digest-null", 2, "manifest.json"),
    ("FILES/export-max-batch-text", 2, ("manifest.json", "max_batch")),
    ("FILES/export-data-text", 2, ("manifest.json", "data")),
    ("FILES/export-data-number", 2, ("manifest.json", "data")),
    ("FILES/export-names-short", 2, ("manifest.json", "class_names")),
    ("FILES/export-names-number", 2, ("manifest.json", "class_names")),
    ("FILES/export-version", 2, ("manifest.json", "version")),
    ("FILES/config-deep", 2, "config.json"),
    ("FILES/run-arch-null", 2, ("config.json", "arch")),
    ("FILES/run-sigma-text", 2, ("config.json", "sigma")),
    ("FILES/run-mean", 2, ("config.json", "mean_sd")),
    ("FILES/run-data-text", 2, ("config.json", "data")),
    ("FILES/run-names-short", 2, ("config.json", "class_names")),
]


@pytest.mark.parametrize(("artefact", "code", "words"), ARTEFACTS)
def test_artefacts(artefact, code, words, check):
    """Everything that --data digits and a sigma cannot be certified with."""
    sigma = "" if "sigma" in artefact or "metadata" in artefact else "--sigma 0.25"
    data = "" if "data" in artefact.rpartition("/")[2] else "--data digits"
    check(f"certify {artefact} --n 100 --stop 2 --seed 1 --out c.jsonl {sigma} {data}", code, words)


DATA = [
    ("nope", 2, "--data nope: unknown; known: digits"),
    ("npz", 2, "--data npz: unknown"),
    ("mnist", 2, "needs --data-root"),
    ("mnist --data-root FILES/empty-folder", 2, ("not found", "--download")),
    ("mnist --data-root FILES/text", 2, "FILES/text".partition("/")[2]),
    ("imagenet --data-root nope", 2, "not found"),
    ("digits --split val", 2, "--split val: must be train or test"),
    ("npz:nope.npz", 2, "nope.npz: no such file"),
    *[(f"npz:FILES/{name}.npz", 2, f"{name}.npz: not a readable .npz file")
      for name in ("zero", "random", "folder", "cut", "flipped", "pickle", "objects", "code")],
    ("npz:FILES/no-y.npz", 2, "has no array y; found x"),
    *[(f"npz:FILES/{name}.npz", 2, "outside [0, 1]") for name in ("nan", "infinite", "bytes-as-floats", "below")],
    *[(f"npz:FILES/{name}.npz", 2, "expected uint8 or floats") for name in ("integers", "bools")],
    ("npz:FILES/flat.npz", 2, "x has shape (20, 8)"),
    ("npz:FILES/none.npz", 2, "no images"),
    ("npz:FILES/other-size.npz", 2, "images are 1x9x9, the model takes 1x8x8"),
    ("npz:FILES/colour.npz", 2, "images are 3x8x8, the model takes 1x8x8"),
    ("npz:FILES/label-high.npz", 2, ("has label 14", "0 .. 9")),
    ("npz:FILES/label-negative.npz", 2, "negative label"),
    ("npz:FILES/label-float.npz", 2, "y is float64"),
    ("npz:FILES/label-short.npz", 2, ("y is int64 (5,)", "expected 20 integers")),
    ("folder:nope", 2, "nope: no such folder"),
    ("folder:FILES/text", 2, "no such folder"),
    ("folder:FILES/empty-folder", 2, "no images found"),
    ("folder:FILES/pictures-cut --start 3", 2, "a.png"),
    ("npz:FILES/texts.npz", 2, "texts.npz"),
    ("npz:FILES/single.npz", 2, "single.npz"),
    ("npz:FILES/single.npy", 2, "single.npy"),
    ("npz:FILES/label-huge.npz", 2, "label"),  # fills the memory
]  # fmt: skip


@pytest.mark.parametrize(("data", "code", "words"), DATA)
def test_data(data, code, words, check):
    """Data sets that are missing, damaged, hostile, or not for this model."""
    check(f"certify EXPORT --n 100 --seed 1 --out c.jsonl --data {data}", code, words)


OPTIONS = [
    *[(f"--sigma {value}", 2, "must be a positive number") for value in ("0", "-1", "nan", "inf", "-inf")],
    *[(f"--alpha {value}", 2, "must lie in [1e-100, 0.5)") for value in ("0", "1", "-1", "nan", "inf", "0.5")],
    *[(f"--n {value}", 2, "must be at least 1") for value in ("0", "-5")],
    *[(f"--n {value}", 2, ("even a unanimous vote abstains", "--n 10")) for value in ("1", "5", "9")],
    ("--n 1.5", 2, "Usage:"),
    *[(f"--n0 {value}", 2, "must be at least 1") for value in ("0", "-1")],
    *[(f"--batch-size {value}", 2, "must be at least 1") for value in ("0", "-1")],
    *[(f"--threads {value}", 2, "--threads") for value in ("0", "-1", "999999")],
    ("--start -1", 2, "--start -1"),
    ("--start 400", 2, "selects none of the 360 images"),
    ("--stop 0", 2, "selects none"),
    ("--stop -1", 2, "--stop -1"),
    ("--skip 0", 2, "--skip 0"),
    ("--skip -1", 2, "--skip -1"),
    ("--start 2 --stop 2", 2, "selects none"),
    ("--engine nope", 2, "known engines: trt, "),
    ("--engine torch", 2, "use --engine ort"),
    ("--device gpu", 2, "must be auto, cpu or cuda"),
    ("--device cuda", 4, "--device cpu"),
    ("--rule nope", 2, "known rules: fixed"),
    ("--noise nope", 2, "known: gaussian"),
    ("--seed x", 2, "Usage:"),
    ("--nonsense", 2, "Usage:"),
    ("--out FILES/text", 2, "exists; add --resume"),
    ("--out FILES/text --resume", 2, "text"),
    ("--out FILES/empty-folder --resume", 2, "empty-folder"),
    ("--out FILES/text/c.jsonl", 2, "text"),
    ("--tsv FILES/text/c.tsv --out FILES/text/c.jsonl", 2, "text"),
    ("--alpha 5e-324", 2, "--alpha"),
    ("--tsv c.jsonl", 2, "--tsv"),
    ("--tsv FILES/text/c.tsv", 2, "--tsv"),
    ("--tsv FILES/empty-folder", 2, "--tsv"),
]


@pytest.mark.parametrize(("options", "code", "words"), OPTIONS)
def test_options_of_certify(options, code, words, check):
    """Refused before anything is sampled or written."""
    out = "" if "--out" in options else "--out c.jsonl"
    n = "" if "--n " in options else "--n 100"
    stop = "" if "--start" in options or "--stop" in options else "--stop 2"
    check(f"certify EXPORT {out} {n} {stop} --seed 1 {options}", code, words)


OTHERS = [
    ("export nope --out e", 2, "nope: no such file"),
    ("export EXPORT --out e --layout nchw --mean 1,2", 2, "--mean"),
    ("export FILES/good.onnx --out e", 2, "--sigma"),
    ("export RUN --out e --layout nhwc", 2, "is a run folder"),
    ("export EXPORT --out e --precision int4", 2, "--precision"),
    ("export RUN --out e --precision fp8", 2, "--format trt"),
    ("export EXPORT --out e --input-shape 1,9,9", 2, "--input-shape"),
    ("export EXPORT --out e --input-range -1", 2, "--input-range"),
    ("export EXPORT --out e --layout x", 2, "--layout"),
    ("export RUN --out e --max-radius-lost 2", 2, "--max-radius-lost"),
    ("export RUN --out e --calibration-samples 0", 2, "--calibration-samples"),
    ("export FILES/weights-cut --out e", 2, "safetensors"),
    ("export RUN --out e --format nope", 2, "--format nope"),
    ("export RUN --out e --precision int4", 2, "--precision int4"),
    ("export RUN --out e --max-batch 0", 2, "at least 1"),
    *[(f"export RUN --out e --max-disagreement {value}", 2, "must lie in [0, 1)") for value in ("-1", "1", "nan")],
    ("export RUN --out e --parity-samples 0", 2, "at least 1"),
    ("export RUN --out e --data npz:FILES/nan.npz", 2, "outside [0, 1]"),
    ("export RUN --out FILES/text", 2, "is a file; choose a folder"),
    ("export RUN --out FILES/text/e", 2, "text"),
    ("export RUN --out FILES/pictures", 2, "not empty and not an earlier export"),
    ("export RUN --out RUN", 2, "not empty and not an earlier export"),
    ("export FILES/run-sigma-text --out e", 2, "sigma"),
    ("export FILES/run-sigma-zero --out e --parity-samples 1024", 2, "sigma"),
    ("export FILES/run-data-null --out e", 2, "data"),
    ("import nope --data digits --sigma 0.5 --out i", 2, "nope: no such file"),
    *[(f"import FILES/{name}.pth --data digits --sigma 0.5 --out i", 2, f"{name}.pth")
      for name in ("zero", "random", "folder", "code", "list")],
    ("import FILES/good.npz --data digits --sigma 0.5 --out i", 2, "good.npz"),
    *[(f"import FILES/list.pth --data digits --sigma {value} --out i", 2, "--sigma") for value in ("0", "-1", "nan")],
    ("import FILES/list.pth --data digits --sigma 0.5 --out RUN", 2, "already a run folder"),
    ("import FILES/list.pth", 2, "Usage:"),
    ("predict EXPORT", 2, "name image files, or a data set"),
    ("predict EXPORT FILES/good.png --data digits", 2, "one of the two"),
    *[(f"predict EXPORT FILES/{name}.png", 2, f"{name}.png") for name in ("zero", "random", "folder", "cut", "nope")],
    ("predict EXPORT FILES/other-size.png", 2, "9 x 9 pixels, expected 8 x 8"),
    ("predict EXPORT FILES/good.npz", 2, "not an image"),
    ("predict EXPORT FILES/good.png --sigma 0", 2, "--sigma 0"),
    ("predict FILES/altered FILES/good.png", 3, "SHA-256"),
    ("predict EXPORT FILES/good.png --device cuda", 4, "--device cpu"),
    ("predict FILES/export-names-short --data digits --stop 5 --n 100", 2, "class_names"),
    ("report nope", 2, "nope: no such file"),
    *[(f"report FILES/{name}.jsonl", 2, f"{name}.jsonl") for name in ("zero", "random", "folder")],
    ("report FILES/good.png", 2, "neither a certificate file nor a table"),
    ("report FILES/zero.jsonl --format pdf", 2, "--format pdf"),
    ("report FILES/zero.jsonl --radii x", 2, "--radii x"),
    ("verify nope", 2, "nope: no such file"),
    ("verify FILES/empty-folder", 2, "cannot be read"),
    ("verify FILES/zero.jsonl", 3, "line 1"),
    ("verify FILES/random.jsonl", 3, "line 1"),
    ("bench nope", 2, "nope: no such file"),
    ("bench FILES/altered", 3, "SHA-256"),
    *[(f"bench EXPORT --batch-sizes {value}", 2, "--batch-sizes") for value in ("0", "x", "-1", "1.5", "''")],
    ("bench EXPORT --engine nope", 2, "known engines"),
    ("bench EXPORT --engine torch", 2, "use --engine ort"),
    ("bench EXPORT --device cuda", 4, "--device cpu"),
    *[(f"bench EXPORT --seconds {value}", 2, "must be positive") for value in ("0", "-1", "nan")],
    ("bench FILES/zero.onnx", 2, "zero.onnx"),
    ("bench FILES/fixed-batch.onnx --batch-sizes 8", 2, "batches of 16 only"),
    ("demo --out FILES/text", 2, "exists"),
    ("demo --out FILES/pictures", 2, "exists"),
    ("doctor extra", 2, "Usage:"),
    ("recipes --nope", 2, "Usage:"),
    ("nope", 2, "Usage:"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "words"), OTHERS)
def test_other_commands(arguments, code, words, check):
    """The same for every other command."""
    check(arguments, code, words)


TRAINING = [
    *[(f"--{name} {value}", 2, f"--{name}")
      for name, values in {"sigma": "0 -1 nan inf", "epochs": "0 -1", "batch-size": "0 -1 1", "lr": "0 -1 nan inf",
                           "lr-step": "0", "schedule": "nope", "m": "0 -1", "attack-steps": "-1",
                           "attack-step-size": "0 nan", "eta": "-1 nan", "max-norm": "0 nan",
                           "warmup-epochs": "-1", "lbd": "-1 nan", "beta": "0 nan", "margin": "0 inf"}.items()
      for value in values.split()],
    ("--arch nope", 2, "known: digits-cnn"),
    ("--arch lenet", 2, "does not take images of 1x8x8"),
    ("--arch os:system", 2, "os:system"),
    ("--arch nope:x", 2, "cannot import it"),
    ("--recipe smoothmix-digit", 2, "did you mean smoothmix-digits-0.25"),
    ("--recipe smoothmix-digits-0.25 --method gaussian", 2, "--method gaussian"),
    ("--method nope", 2, "--method nope: unknown"),
    ("--method smoothadv --attack-steps 0", 2, "--attack-steps of at least 1"),
    ("--method macer --epochs 4 --warmup-epochs 4", 2, "--warmup-epochs 4: must be below --epochs 4"),
    ("--device cuda", 4, "--device cpu"),
    ("--start 64 --stop 64", 2, "selects none"),
    ("--data npz:FILES/good.npz", 2, "pass --arch"),
    ("--data npz:FILES/good.npz --arch digits-cnn", 2, "--sigma: missing"),
    ("--data npz:FILES/nan.npz --arch digits-cnn --sigma 1", 2, "outside [0, 1]"),
    ("--data npz:FILES/colour.npz --arch digits-cnn --sigma 1", 2, "does not take images of 3x8x8"),
    ("--out FILES/text", 2, "is a file"),
    ("--out FILES/pictures", 2, "not empty and not a run folder"),
    ("--out RUN", 2, "already a run folder"),
    ("--out FILES/state-cut --resume", 2, "--resume"),
    ("--momentum -1", 2, "--momentum"),
    ("--weight-decay -1", 2, "--weight-decay"),
    ("--seed -1", 2, "--seed"),
    ("--seed 99999999999999999999999", 2, "--seed"),
    ("--stop 1", 2, "images"),
    ("--m 65 --stop 64", 2, "images"),
    ("--data folder:FILES/pictures-test-only --arch digits-cnn --sigma 1", 2, "train"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "code", "words"), TRAINING)
def test_options_of_train(options, code, words, check):
    """Refused before the first step."""
    out = "" if "--out" in options else "--out r"
    check(f"train --data digits --epochs 1 {out} {options}", code, words)


@pytest.mark.parametrize("options", ["--method nope", "--momentum -1"])
def test_a_refused_training_leaves_no_run_folder(options, tmp_path):
    """So that the corrected command is not told that the folder is taken."""
    assert (
        cli._run(["train", "--data", "digits", "--epochs", "1", "--out", str(tmp_path / "r"), *options.split()], False)
        > 0
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["state-cut", "state-zero"])
def test_damaged_training_state(name, files, digits_run, tmp_path, capfd):
    """Named, and nothing is overwritten."""
    shutil.copytree(files / name, tmp_path / "r")
    settings = json.loads((digits_run / "config.json").read_text())["hyper_parameters"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    arguments = ["train", "--data", "digits", "--method", "gaussian", "--epochs", str(settings["epochs"]), "--resume"]
    assert cli._run([*arguments, "--out", str(tmp_path / "r")], debug=False) == 2
    assert "state.pt: not a readable training state" in capfd.readouterr().err
    after = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    del before["config.json"], after["config.json"]
    assert after == before


@pytest.mark.parametrize(
    "arguments",
    [
        "certify {files}/good.onnx --sigma 0.25 --data digits --stop 2 --n 100",
        "certify {files}/fixed-batch.onnx --sigma 0.25 --data digits --stop 2 --n 100",
        "certify {files}/export-max-batch --stop 2 --n 100",
        "certify {export} --data npz:{files}/good.npz --stop 2 --n 100 --batch-size 1",
        "certify {export} --data folder:{files}/pictures --stop 2 --n 100 --start 1 --skip 999",
        "certify {export} --stop 2 --n 10",
    ],
)
def test_unusual_but_right(arguments, files, digits_export, tmp_path, capfd, monkeypatch):
    """Fixed and small batches, foreign models and sets, the fewest samples that can certify."""
    monkeypatch.chdir(tmp_path)
    words = arguments.format(files=files, export=digits_export).split()
    assert cli._run([*words, "--json", "--out", "c.jsonl"], debug=False) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["images"] in (1, 2)
    assert tree(tmp_path) == {Path("c.jsonl")}


def test_debug_shows_the_traceback():
    """And without it there is none: see above."""
    with pytest.raises(ValueError, match="no such file"):
        cli._run(["certify", "nope"], debug=True)


@pytest.mark.parametrize("name", ["text", "good.npz"])
def test_resuming_a_foreign_file_leaves_it_alone(name, files, digits_export, tmp_path, capfd):
    """A file without a line end is not taken for one that was killed in its first line."""
    shutil.copy(files / name, tmp_path / name)
    assert (
        cli._run(["certify", str(digits_export), "--n", "100", "--resume", "--out", str(tmp_path / name)], False) == 2
    )
    assert (tmp_path / name).read_bytes() == (files / name).read_bytes()
