"""The Triton repository, read with the schema that Triton's own client ships."""

import json
import re
import shlex

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import save

import smoothmix_deploy as smx
from smoothmix_deploy.exporting.triton_repository import Served, write_repository

config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
TYPES = {TensorProto.FLOAT: config_pb2.TYPE_FP32}


def parse(model):
    """`config.pbtxt` as Triton reads it: unknown fields and wrong types raise."""
    from google.protobuf import text_format

    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), config_pb2.ModelConfig())


def check_against_onnx(config, file):
    """Names, types and dimensions of the configuration are those of the file."""
    graph = onnx.load(file).graph
    for said, present in ((config.input, graph.input), (config.output, graph.output)):
        assert [value.name for value in said] == [value.name for value in present]
        for mine, theirs in zip(said, present, strict=True):
            tensor = theirs.type.tensor_type
            assert mine.data_type == TYPES[tensor.elem_type]
            dims = [d.dim_value for d in tensor.shape.dim]
            if config.max_batch_size:  # Triton adds the batch dimension itself, and it must be free in the file
                assert dims.pop(0) == 0
            assert list(mine.dims) == dims


@pytest.fixture(scope="module")
def repository(digits_run, tmp_path_factory):
    """A Triton export of the digits classifier, from a folder whose name is none for a URL."""
    return smx.export(digits_run, out=tmp_path_factory.mktemp("triton") / "digits (v2) é", format="triton", seed=0).path


def test_configuration_is_the_models(repository):
    """The layout Triton scans for, the schema it parses with, the tensors that the file has."""
    (model,) = (repository / "model_repository").iterdir()
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", model.name)
    assert {path.name for path in model.iterdir()} == {"1", "config.pbtxt", "labels.txt"}
    config = parse(model)
    assert config.name == model.name
    assert config.backend == "onnxruntime"
    assert config.default_model_filename == "model.onnx"
    assert config.max_batch_size == 256
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32, 256]
    assert config.instance_group[0].kind == config_pb2.ModelInstanceGroup.KIND_CPU
    assert config.version_policy.latest.num_versions == 1
    check_against_onnx(config, model / "1" / "model.onnx")


def test_labels_are_the_classes(repository):
    """One line a class, where the output says to look."""
    (model,) = (repository / "model_repository").iterdir()
    labels = (model / parse(model).output[0].label_filename).read_text(encoding="utf-8").splitlines()
    assert labels == [str(k) for k in range(10)]


def test_readme_serves_what_is_there(repository):
    """The command mounts the folder that exists; the example request has the model's name, input and shape."""
    (model,) = (repository / "model_repository").iterdir()
    text = (repository / "README.md").read_text(encoding="utf-8")
    words = shlex.split(re.search(r"docker run.*?(?=\n\n)", text, re.DOTALL)[0].replace("\\\n", " "))
    mounted, inside, _ = words[words.index("-v") + 1].split(":")
    assert (repository / mounted.removeprefix("$PWD/")).samefile(model.parent)
    assert f"--model-repository={inside}" in words
    assert "--gpus=1" not in words
    assert any(word.startswith("nvcr.io/nvidia/tritonserver:") for word in words)
    request = shlex.split(next(line for line in text.splitlines() if "curl -s" in line))
    assert request[2].endswith(f"/v2/models/{model.name}/infer")
    sent = json.loads(request[4])["inputs"][0]
    assert sent["name"] == parse(model).input[0].name
    assert sent["shape"] == [1, 1, 8, 8]


def test_repository_certifies(repository, tmp_path):
    """What is served is what is certified: by the export folder, and by the file in its depth."""
    by_folder = smx.certify(repository, n=50, stop=3, seed=0, out=tmp_path / "a.jsonl").manifest.artefact
    (file,) = repository.rglob("model.onnx")
    by_file = smx.certify(file, n=50, stop=3, seed=0, out=tmp_path / "b.jsonl").manifest.artefact
    assert by_folder["sha256"] == by_file["sha256"]


def test_altered_model_is_refused(repository, tmp_path):
    """A file exchanged in the repository is not the one that passed the gate."""
    import shutil

    copy = shutil.copytree(repository, tmp_path / "copy")
    (file,) = copy.rglob("model.onnx")
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(smx.CheckFailed, match="SHA-256"):
        smx.certify(copy, n=50, stop=2, out=tmp_path / "c.jsonl")


def test_batch_size_of_the_file(tmp_path):
    """A network of one batch size has it in its dims, and Triton's batching off."""
    matrix = np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    file = save(
        tmp_path / "four.onnx", nodes, [("w", matrix.T), ("shape", np.array([4, 64]))],
        inputs=(("x", TensorProto.FLOAT, [4, 1, 8, 8]),), output_shape=(4, 10),
    )  # fmt: skip
    out = smx.export(file, out=tmp_path / "out", format="triton", sigma=0.25, data="digits", seed=0).path
    (model,) = (out / "model_repository").iterdir()
    config = parse(model)
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 1, 8, 8]
    assert not config.HasField("dynamic_batching")
    assert not config.output[0].label_filename  # nobody named the classes
    check_against_onnx(config, model / "1" / "model.onnx")
    assert smx.certify(out, data="digits", n=50, stop=2, out=tmp_path / "c.jsonl").manifest.engine["batch_size"] == 4


@pytest.mark.parametrize(("most", "preferred"), [(1, [1]), (8, [8]), (20, [8, 20]), (512, [8, 32, 512])])
def test_limits_and_strange_names(tmp_path, most, preferred):
    """Preferred sizes never exceed the largest; quotes, line breaks and accents in names do not break the text."""
    (tmp_path / "m.onnx").write_bytes(b"")
    names = ['a "quoted" one', "two\nlines", "ünïcode", "back\\slash"]
    served = Served("m", 'in"put', "out\\put", (3, 4, 5), 4, names, most, False, None, True)
    write_repository(tmp_path / "m.onnx", tmp_path, served)
    model = tmp_path / "model_repository" / "m"
    config = parse(model)
    assert config.input[0].name == 'in"put'
    assert config.output[0].name == "out\\put"
    assert config.max_batch_size == most
    assert list(config.dynamic_batching.preferred_batch_size) == preferred
    assert config.instance_group[0].kind == config_pb2.ModelInstanceGroup.KIND_GPU
    labels = (model / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == ['a "quoted" one', "two lines", "ünïcode", "back\\slash"]
