"""Files that are damaged, or not what they should be: written by code, because a repository of them would be a hazard."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnx_models import half_space, save
from PIL import Image

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


def write_all(root, run, export):
    """Into the folder `root`; some are copies of a good run folder and a good export folder with one thing changed."""
    (root / "empty-folder").mkdir()
    (root / "text").write_text("hello")
    for suffix in ("onnx", "npz", "png", "pth", "jsonl"):
        (root / f"zero.{suffix}").write_bytes(b"")
        (root / f"random.{suffix}").write_bytes(np.random.default_rng(0).bytes(3000))
        (root / f"folder.{suffix}").mkdir()
    _arrays(root)
    _networks(root, export)
    _pictures(root)
    for name, change in (("manifest-cut", lambda b: b[:300]), ("manifest-list", lambda b: b"[]")):
        altered(export, root / name, "manifest.json", change)
    altered(export, root / "altered", "model.onnx", lambda b: b[:-2000] + bytes([b[-2000] ^ 1]) + b[-1999:])
    for name, change in {
        "kind": {"kind": "x"}, "escapes": {"artefact": "../model.onnx"}, "unlisted": {"files": {}},
        "max-batch": {"max_batch": 4}, "sigma-null": {"sigma": None}, "sigma-zero": {"sigma": 0},
        "sigma-text": {"sigma": "x"}, "sigma-list": {"sigma": [1]},
        "digest-null": {"files": {"model.onnx": {"sha256": None}}},
        "max-batch-text": {"max_batch": "x"}, "data-text": {"data": "digits"}, "data-number": {"data": {"name": 5}},
        "names-short": {"class_names": ["a"]}, "names-number": {"class_names": 3}, "version": {"format_version": 9},
    }.items():  # fmt: skip
        altered(export, root / f"export-{name}", "manifest.json", change)
    for name, change in {
        "arch": {"arch": "nope"}, "classes": {"num_classes": 7}, "shape": {"input_shape": [1, 9, 9]},
        "version": {"format_version": 2}, "arch-null": {"arch": None}, "sigma-text": {"sigma": "x"},
        "sigma-zero": {"sigma": 0}, "mean": {"mean_sd": [[1], [2], [3]]}, "data-null": {"data": None},
        "data-text": {"data": "digits"}, "names-short": {"class_names": ["a"]},
    }.items():  # fmt: skip
        altered(run, root / f"run-{name}", "config.json", change)
    for name, change in {"cut": lambda b: b[: len(b) // 2], "zero": lambda b: b"", "nan": _nan_weights}.items():
        altered(run, root / f"weights-{name}", "model.safetensors", change)
    altered(run, root / "config-zero", "config.json", lambda b: b"")
    altered(run, root / "config-binary", "config.json", lambda b: b"\xff\xfe\x00")
    altered(run, root / "config-deep", "config.json", lambda b: b"[" * 200_000)
    for name, change in {"cut": lambda b: b[: len(b) // 2], "zero": lambda b: b""}.items():
        altered(run, root / f"state-{name}", "state.pt", change)
    altered(run, root / "no-weights", "metrics.jsonl", lambda b: b)
    (root / "no-weights" / "model.safetensors").unlink()
    torch.save({"arch": "digits-cnn", "state_dict": {"a": Code()}}, root / "code.pth")
    torch.save([1, 2], root / "list.pth")


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
