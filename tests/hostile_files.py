"""Files made to do harm: to run code, fill the memory, hang, crash a parser, write elsewhere, or steer the terminal."""

import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import onnx
import torch
from bad_files import IMAGES, SCORES, WEIGHTS, Code, altered
from onnx import TensorProto, helper
from onnx_models import save
from PIL import Image

ESCAPES = "\x1b[31mred\x1b]0;title\x07\r\n\u202eback"
"""Colours, the window's title, a line of its own, and text that runs from right to left."""
HUGE = 10**400


def write_all(root, run, export, certs):
    """Into the folder `root`, and a secret beside it that nobody may read."""
    (root.parent / "secret.bin").write_bytes(bytes(4 * 64 * 10))
    os.mkfifo(root / "pipe.json")
    _networks(root)
    _arrays(root)
    _pictures(root)
    _run_folders(root, run)
    _export_folders(root, export)
    _certificates(root, certs)
    torch.save({"arch": "digits-cnn", "state_dict": Code()}, root / "code.pth")
    (root / "raw.pth").write_bytes(pickle.dumps(Code(), protocol=2))
    torch.save({"arch": ESCAPES, "state_dict": {"a": torch.zeros(1)}}, root / "escapes.pth")
    torch.save({"arch": "timm:local-dir:/etc", "state_dict": {"a": torch.zeros(1)}}, root / "timm.pth")
    torch.save({"arch": 5, "state_dict": {5: torch.zeros(1)}}, root / "numbers.pth")


def field(number, content):
    """A length-delimited protobuf field."""
    size, head = len(content), bytearray()
    for value in (number << 3 | 2, size):
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        head.append(value)
    return bytes(head) + content


def _networks(root):
    (root / "many-nodes.onnx").write_bytes(field(7, b"\x0a\x00" * 300_000))
    deep = b""
    for _ in range(100):
        deep = field(1, field(5, field(6, deep)))  # graph > node > attribute > graph
    (root / "deep.onnx").write_bytes(field(7, deep))
    (root / "length.onnx").write_bytes(b"\x3a\xff\xff\xff\xff\x7f")
    (root / "endless-number.onnx").write_bytes(b"\x08" + b"\xff" * 40)
    (root / "group.onnx").write_bytes(b"\x3b\x3c")
    os.mkfifo(root / "pipe.onnx")
    (root / "device.onnx").symlink_to("/dev/zero")
    (root / "loop.onnx").symlink_to("loop.onnx")
    good = save(root / "sound.onnx", SCORES, WEIGHTS, inputs=IMAGES, output_shape=("batch", 10))
    for name, dims in {
        "huge": [2**40],
        "negative": [-1, 64],
        "product": [2**20, 2**20],
        "overflow": [2**62, 4],
    }.items():
        model = onnx.load(good)
        model.graph.initializer[0].dims[:] = dims
        onnx.save(model, root / f"dims-{name}.onnx")
    model = onnx.load(good)
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1, 2], [0, 0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**20, 2**20]))
    onnx.save(model, root / "sparse.onnx")
    for name, shape in {"image": ["batch", 1, 10**6, 10**6], "batch": [2**40, 1, 8, 8]}.items():
        save(
            root / f"{name}-huge.onnx",
            SCORES,
            WEIGHTS,
            inputs=(("x", TensorProto.FLOAT, shape),),
            output_shape=("b", 10),
        )
    size = [("w", WEIGHTS[0][1]), ("b", WEIGHTS[1][1]), ("size", np.array([2**17, 2**17]))]
    fill = [*SCORES[:1], helper.make_node("Gemm", ["flat", "w", "b"], ["h"], transB=1),
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]), helper.make_node("ReduceMax", ["zeros"], ["top"]),
            helper.make_node("Add", ["h", "top"], ["y"])]  # fmt: skip
    save(root / "fills-memory.onnx", fill, size, inputs=IMAGES, output_shape=("batch", 10))
    for name, location in {"parent": "../secret.bin", "absolute": "/etc/hostname", "missing": "nothing.bin",
                           "pipe": "pipe.json", "folder": ".", "nul": "a\0b"}.items():  # fmt: skip
        model = onnx.load(good)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (root / f"weights-{name}.onnx").write_bytes(model.SerializeToString())
    for name, text in {"escapes": json.dumps({"class_names": [ESCAPES] * 3, "sigma": 0.25}), "deep": "[" * 100_000,
                       "surrogate": '{"class_names": ["\\ud800"]}', "huge": json.dumps({"sigma": HUGE}),
                       "digits": '{"sigma": ' + "9" * 5000 + "}"}.items():  # fmt: skip
        model = onnx.load(good)
        helper.set_model_props(model, {"smoothmix_deploy": text})
        onnx.save(model, root / f"props-{name}.onnx")


def header(shape, dtype="'<f4'"):
    """The bytes of an .npy file that has a header and nothing else."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _arrays(root):
    y = header((1,), "'<i8'") + bytes(8)
    for name, x in {
        "huge": header((2**40, 8, 8)), "negative": header((-1, 8, 8)), "overflow": header((2**62, 2**62, 4)),
        "code": header("__import__('os').system('touch code-was-run')"), "object": header((1,), "'|O'"),
        "record": header((1, 8, 8), "[('a', '<f4')]"), "date": header((1, 8, 8), "'<M8[s]'") + bytes(512),
        "complex": header((1, 8, 8), "'<c8'") + bytes(512), "text": header((1, 8, 8), "'<U2'") + bytes(512),
        "scalar": header(()) + bytes(4), "magic": b"\x93NUMPY\x09\x00", "deep": header("(" * 500 + ")" * 500),
        "float-shape": header("(1.5,)"), "short": header((1, 8, 8)) + bytes(10), "five": header((1, 1, 1, 1, 1)) + bytes(4),
        "empty-side": header((1, 0, 8)), "digits": header("(" + "9" * 5000 + ",)"),
    }.items():  # fmt: skip
        with zipfile.ZipFile(root / f"x-{name}.npz", "w") as archive:
            archive.writestr("x.npy", x)
            archive.writestr("y.npy", y)
    with zipfile.ZipFile(root / "x-bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header((80_000_000, 8, 8), "'|u1'") + bytes(1 << 20))  # says 5 GB, has 1 MB
        archive.writestr("y.npy", y)
    whole = (root / "x-short.npz").read_bytes()
    (root / "x-encrypted.npz").write_bytes(
        whole.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    )


def png(width, height, extra=b""):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + extra + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _pictures(root):
    (root / "bomb.png").write_bytes(png(100_000, 100_000))
    (root / "flat.png").write_bytes(png(0, 8))
    (root / "empty.png").write_bytes(png(8, 8))
    text = zlib.compress(bytes(80 << 20))
    chunk = b"zTXta\0\0" + text
    size = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (root / "text-bomb.png").write_bytes(png(8, 8, size))
    frames = [Image.new("L", (8, 8), level) for level in (0, 90, 200)]
    for name in ("frames.gif", "frames.png", "frames.tiff", "frames.webp"):
        frames[0].save(root / name, save_all=True, append_images=frames[1:])
    Image.new("RGBA", (8, 8), (255, 0, 0, 10)).save(root / "transparent.png")
    Image.new("LAB", (8, 8)).save(root / "lab.tiff")
    Image.new("I;16", (8, 8)).save(root / "deep.png")
    Image.new("F", (8, 8)).save(root / "float.tiff")
    (root / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n")
    (root / "vector.png").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    os.mkfifo(root / "pipe.png")
    (root / "device.png").symlink_to("/dev/zero")
    (root / "loop.png").symlink_to("loop.png")
    for name in ("pipes", "bombs", "many-frames"):
        (root / name / "a").mkdir(parents=True)
        (root / name / "b").mkdir()
    os.mkfifo(root / "pipes" / "a" / "x.png")
    (root / "pipes" / "b" / "x.png").symlink_to("/dev/zero")
    (root / "bombs" / "a" / "x.png").write_bytes(png(100_000, 100_000))
    (root / "many-frames" / "a" / "x.png").write_bytes((root / "frames.png").read_bytes())


def _run_folders(root, run):
    for name, change in {
        "code": {"arch": "subprocess:getoutput"}, "code-beside": {"arch": "evil:make"}, "code-escapes": {"arch": f"{ESCAPES}:x"},
        "hub": {"arch": "timm:hf-hub:somebody/model"}, "local-dir": {"arch": "timm:local-dir:/etc"},
        "classes": {"num_classes": 10**12, "class_names": None}, "classes-huge": {"num_classes": HUGE, "class_names": None},
        "shape": {"input_shape": [1, 10**6, 10**6]}, "shape-huge": {"input_shape": [1, 8, HUGE]},
        "sigma-infinite": {"sigma": float("inf")}, "sigma-nan": {"sigma": float("nan")}, "sigma-huge": {"sigma": HUGE},
        "names": {"class_names": ["\ud800"] * 10}, "names-numbers": {"class_names": [1] * 10},
        "data-nul": {"data": {"name": "npz:a\0b", "root": None}}, "data-device": {"data": {"name": "npz:/dev/zero", "root": None}},
        "mean-huge": {"mean_sd": [[HUGE], [1]]}, "mean-nan": {"mean_sd": [[float("nan")], [1]]},
        "hyper": {"hyper_parameters": []}, "epochs": {"epochs_completed": "x"},
    }.items():  # fmt: skip
        altered(run, root / f"evil-{name}", "config.json", change)
    for name, content in {
        "twice": lambda b: b.replace(b'"arch"', b'"arch": "x", "arch"', 1)[:-3], "utf16": lambda b: b.decode().encode("utf-16"),
        "digits": lambda b: b'{"a": ' + b"9" * 5000 + b"}", "big": lambda b: b'"' + b"a" * (65 << 20) + b'"',
        "nul": lambda b: b + b"\0",
    }.items():  # fmt: skip
        altered(run, root / f"config-{name}", "config.json", content)
    altered(run, root / "config-pipe", "config.json", lambda b: b)
    (root / "config-pipe" / "config.json").unlink()
    (root / "config-pipe" / "config.json").symlink_to(root / "pipe.json")
    altered(run, root / "config-loop", "config.json", lambda b: b)
    (root / "config-loop" / "config.json").unlink()
    (root / "config-loop" / "config.json").symlink_to("config.json")
    for name, change in {
        "header-long": lambda b: struct.pack("<Q", 2**60) + b[8:], "header-text": lambda b: struct.pack("<Q", 4) + b"nope",
        "header-list": lambda b: struct.pack("<Q", 2) + b"[]", "pickle": lambda b: pickle.dumps(Code()),
        "header-deep": lambda b: struct.pack("<Q", 50_000) + b"[" * 50_000, "trailing": lambda b: b + bytes(100),
        "declared": lambda b: _tensor({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}, bytes(4)),
        "overlapping": lambda b: _tensor({"dtype": "F32", "shape": [1], "data_offsets": [2, 1]}, bytes(4)),
        "type": lambda b: _tensor({"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}, bytes(4)),
        "other": lambda b: _tensor({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, bytes(4)),
    }.items():  # fmt: skip
        altered(run, root / f"tensors-{name}", "model.safetensors", change)
    altered(run, root / "state-code", "state.pt", lambda b: pickle.dumps(Code(), protocol=2))


def _tensor(entry, content):
    text = json.dumps({"net.x": entry}).encode()
    return struct.pack("<Q", len(text)) + text + content


def _export_folders(root, export):
    for name, change in {
        "absolute": {"artefact": "/etc/hostname"}, "empty": {"artefact": ""}, "dot": {"artefact": "."},
        "nul": {"artefact": "a\0b.onnx"}, "long": {"artefact": "a" * 5000 + ".onnx"}, "escapes": {"artefact": ESCAPES},
        "surrogate": {"artefact": "\ud800.onnx"}, "files-list": {"files": ["model.onnx"]}, "sigma-nan": {"sigma": float("nan")},
        "precision": {"precision": 5}, "max-batch-huge": {"max_batch": float("inf")}, "names": {"class_names": [[]]},
        "parent": {"artefact": "a/../../text.onnx", "files": {"a/../../text.onnx": {"sha256": "0" * 64}}},
        "pending": {"parity": {"passed": None}}, "plan": {"artefact": "model.plan"},
    }.items():  # fmt: skip
        altered(export, root / f"evil-export-{name}", "manifest.json", change)
    altered(export, root / "evil-export-device", "manifest.json", lambda b: b)
    (root / "evil-export-device" / "model.onnx").unlink()
    (root / "evil-export-device" / "model.onnx").symlink_to("/dev/zero")


def _certificates(root, certs):
    lines = certs.read_text().splitlines()

    def write(name, *, manifest=None, line=None, raw=None):
        first, second = ({**json.loads(lines[i]), **(change or {})} for i, change in ((0, manifest), (1, line)))
        text = "\n".join([json.dumps(first), json.dumps(second), *lines[2:]]) + "\n"
        (root / f"certs-{name}.jsonl").write_bytes(text.encode() if raw is None else raw(text.encode()))

    for name, change in {
        "sigma-huge": {"sigma": HUGE}, "sigma-nan": {"sigma": float("nan")}, "n-huge": {"n": HUGE}, "n-negative": {"n": -1},
        "alpha": {"alpha": 2}, "rule": {"rule": ESCAPES}, "rule-list": {"rule": []}, "key": {"key": ESCAPES},
        "classes": {"num_classes": 1}, "rule-parameters": {"rule_parameters": {"slack": "x"}},
        "rule-unknown": {"rule_parameters": {"a b": 1}}, "rule-nan": {"rule_parameters": {"slack": float("nan")}},
        "data": {"data": {"name": 1}}, "images": {"data": {**json.loads(lines[0])["data"], "images": HUGE}},
        "skip": {"data": {**json.loads(lines[0])["data"], "skip": 0}}, "version": {"format_version": 10**30},
        "noise": {"noise": ESCAPES}, "engine": {"engine": {}}, "names": {"class_names": ["\ud800"]},
        "reuse": {"reuse": {"a": 1}}, "family": {"alpha_family": -1}, "artefact": {"artefact": {"sha256": 5}},
    }.items():  # fmt: skip
        write(name, manifest=change)
    for name, change in {
        "index": {"index": HUGE}, "label": {"label": 1.5}, "radius-huge": {"radius": HUGE}, "radius-nan": {"radius": float("nan")},
        "radius-negative": {"radius": -1}, "counts-list": {"counts": []}, "counts-huge": {"counts": {"0": HUGE}},
        "counts-class": {"counts": {"9" * 50: 1}}, "counts-negative": {"counts": {"0": -5}}, "counts-word": {"counts": {"x": 1}},
        "n-line": {"n": HUGE}, "correct": {"correct": 1}, "kind": {"kind": ESCAPES}, "prediction": {"prediction": 10**9},
    }.items():  # fmt: skip
        write(name, line=change)
    for name, raw in {
        "twice": lambda b: b.replace(b'"radius"', b'"radius": 9, "radius"', 1), "deep": lambda b: b"[" * 100_000 + b"\n" + b,
        "nul": lambda b: b"\0" + b, "utf16": lambda b: b.decode().encode("utf-16"), "bom": lambda b: b"\xef\xbb\xbf" + b,
        "digits": lambda b: b.replace(b'"n": ', b'"n": ' + b"9" * 5000, 1), "cut": lambda b: b[:-20],
        "no-manifest": lambda b: b.partition(b"\n")[2], "two-manifests": lambda b: b.partition(b"\n")[0] + b"\n" + b,
        "blank": lambda b: b.replace(b"\n", b"\n\n", 1), "latin": lambda b: b.replace(b"certificate", b"\xe9", 1),
        "again": lambda b: b + b.splitlines()[1] + b"\n",
    }.items():  # fmt: skip
        write(name, raw=raw)
    header_line = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    for name, row in {
        "long": "1\t" * 20_000, "nan": "0\t1\t1\tnan\t1\t0", "infinite": "0\t1\t1\tinf\t1\t0", "huge": "0\t1\t1\t1e300\t1\t0",
        "negative": "0\t1\t1\t-1\t1\t0", "digits": "9" * 5000 + "\t1\t1\t1\t1\t0", "words": "a\tb\tc\td\te\tf",
        "short": "0\t1", "correct": "0\t1\t1\t0.5\t2\t0", "class": "0\t1\t-5\t0.5\t1\t0", "nul": "\0", "escapes": ESCAPES[:5],
    }.items():  # fmt: skip
        (root / f"table-{name}.tsv").write_text(header_line + row + "\n")
