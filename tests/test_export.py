"""The export is the model, and the gate in front of it fails closed."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import METADATA_KEY, open_artefact
from smoothmix_deploy.engines import open_engine
from smoothmix_deploy.exporting import parity as parity_module
from smoothmix_deploy.exporting import source as source_module
from smoothmix_deploy.exporting.inputs import find_images
from smoothmix_deploy.exporting.inspection import InputHints
from smoothmix_deploy.files import sha256_file
from smoothmix_deploy.models.build import build_model
from smoothmix_deploy.models.run_folder import RunConfig, load_model, read_config, save_weights, write_config


def make_run(folder, arch, shape, mean_sd, data):
    """A run folder of an untrained network with spread-out logits."""
    torch.manual_seed(1)
    model = build_model(arch, num_classes=10, input_shape=shape, mean_sd=mean_sd)
    for module in model.modules():  # BatchNorm statistics that matter
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    config = RunConfig(
        arch=arch, num_classes=10, class_names=None, input_shape=shape, mean_sd=mean_sd, sigma=0.5, method="none",
        recipe=None, seed=0, data={"name": data, "root": None}, versions={},
    )  # fmt: skip
    folder.mkdir()
    save_weights(folder, model)
    write_config(folder, config)
    return folder


def test_manifest_says_what_is_in_the_folder(digits_run, digits_export):
    """Digests, shapes, classes, sigma and the parity report; the same in the ONNX file's own metadata."""
    manifest = json.loads((digits_export / "manifest.json").read_text())
    assert set(manifest["files"]) == {"model.onnx"} == {p.name for p in digits_export.iterdir()} - {"manifest.json"}
    assert manifest["files"]["model.onnx"]["sha256"] == sha256_file(digits_export / "model.onnx")
    assert manifest["weights_sha256"] == sha256_file(digits_run / "model.safetensors")
    assert manifest["input"]["shape"] == ["batch", 1, 8, 8]
    assert manifest["parity"]["passed"]
    assert manifest["parity"]["votes"] == 2048 or manifest["parity"]["votes"] >= 1000
    inside = {p.key: p.value for p in onnx.load(digits_export / "model.onnx").metadata_props}
    assert json.loads(inside[METADATA_KEY])["sigma"] == manifest["sigma"] == read_config(digits_run).sigma


def test_loose_onnx_file_knows_itself(digits_export, tmp_path):
    """Copied out of its folder, model.onnx still says its sigma and classes."""
    loose = tmp_path / "copy.onnx"
    loose.write_bytes((digits_export / "model.onnx").read_bytes())
    found = open_artefact(loose)
    assert found.sigma == 0.25
    assert found.class_names == [str(k) for k in range(10)]
    result = smx.certify(loose, data="digits", n=50, stop=2, out=tmp_path / "c.jsonl")
    assert result.manifest.artefact["sha256"] == sha256_file(loose)


@pytest.mark.parametrize(
    ("arch", "shape", "mean_sd"),
    [
        ("lenet", (1, 28, 28), None),
        ("cifar-resnet20", (3, 32, 32), ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))),
    ],
)
def test_networks_export_and_agree(tmp_path, arch, shape, mean_sd):
    """Normalisation is inside the file: raw images in, PyTorch's logits out, at any batch size."""
    run = make_run(tmp_path / "run", arch, shape, mean_sd, "npz:nowhere.npz")
    result = smx.export(run, out=tmp_path / "out", parity_samples=1500)
    assert result.parity.images.startswith("synthetic")
    engine = open_engine(open_artefact(tmp_path / "out"), "ort", batch_size=5)
    x = np.random.default_rng(0).random((5, *shape), dtype=np.float32)
    model = load_model(run, read_config(run)).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(engine.logits(x), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(engine.logits(x[:1]), expected[:1], rtol=1e-3, atol=1e-4)


def break_weights(monkeypatch):
    """Let the artefact be built from other weights than those of the run folder."""
    original = source_module.RunSource.network

    def altered(self):
        model = original(self)
        bias = next(t for t in model.graph.initializer if t.name.endswith("fc2.bias"))
        values = onnx.numpy_helper.to_array(bias).copy()
        values[3] += 1.0
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return model

    monkeypatch.setattr(source_module.RunSource, "network", altered)


def test_gate_refuses_a_different_network(digits_run, tmp_path, monkeypatch):
    """An artefact of other weights is not written: exit code 3, nothing left behind."""
    break_weights(monkeypatch)
    with pytest.raises(smx.CheckFailed, match="parity gate"):
        smx.export(digits_run, out=tmp_path / "out", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_gate_fails_closed_on_too_few_votes(digits_run, tmp_path):
    """Perfect agreement of few votes proves little: the upper bound decides, not the rate."""
    with pytest.raises(smx.BadInput, match="too few"):
        smx.export(digits_run, out=tmp_path / "out", parity_samples=200)
    assert smx.export(digits_run, out=tmp_path / "out", parity_samples=200, max_disagreement=0.05).parity.passed


def test_failing_export_removes_the_earlier_one(digits_run, tmp_path, monkeypatch):
    """So nobody ships the old file believing it is the new one. Wrong options leave it alone."""
    smx.export(digits_run, out=tmp_path / "out", parity_samples=1000)
    with pytest.raises(smx.BadInput):
        smx.export(digits_run, out=tmp_path / "out", data="npz:nowhere.npz")
    assert (tmp_path / "out" / "model.onnx").exists()
    break_weights(monkeypatch)
    with pytest.raises(smx.CheckFailed):
        smx.export(digits_run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_foreign_folder_is_left_alone(digits_run, tmp_path):
    """An output folder with somebody's files is refused."""
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(smx.BadInput, match="not empty"):
        smx.export(digits_run, out=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


class Pretend:
    """An engine that answers from a function."""

    def __init__(self, info, function):
        self.info, self.logits = info, function


def test_invalid_votes_never_agree(digits_run):
    """NaN on both sides is still a disagreement."""
    real = open_engine(open_artefact(digits_run), "torch", batch_size=64)
    broken = Pretend(real.info, lambda x: np.full((len(x), 10), np.nan, np.float32))
    facts = source_module.open_source(digits_run, InputHints()).facts
    images, described = find_images(facts, None, None, False, split="test")
    arguments = {"sigma": 0.25, "samples": 128, "max_disagreement": 0.5, "key": "0" * 32}
    report = parity_module.check_parity(broken, broken, images, described, **arguments)
    assert not report.passed
    assert report.invalid_votes == report.disagreements == 128
    assert parity_module.check_parity(real, real, images, described, **arguments).disagreements == 0


@pytest.mark.parametrize(("flipped", "passed"), [(0, True), (1, True), (8, False)])
def test_gate_judges_by_the_upper_bound(digits_run, flipped, passed):
    """8 of 1,024 votes are fewer than 1 %, but do not prove that fewer than 1 % differ."""
    real = open_engine(open_artefact(digits_run), "torch", batch_size=64)
    seen = []

    def flip(x):
        logits = real.logits(x).copy()
        if not seen:
            logits[:flipped] = -logits[:flipped]
        seen.append(len(x))
        return logits

    facts = source_module.open_source(digits_run, InputHints()).facts
    images, described = find_images(facts, None, None, False, split="test")
    report = parity_module.check_parity(
        real, Pretend(real.info, flip), images, described,
        sigma=0.25, samples=1024, max_disagreement=0.01, key="0" * 32,
    )  # fmt: skip
    assert report.disagreements == flipped
    assert report.rate < 0.01
    assert report.passed is passed
    assert (report.upper_bound <= 0.01) is passed


def test_max_batch_is_enforced(digits_run, tmp_path):
    """What was exported for at most 32 rows is not run with 64."""
    smx.export(digits_run, out=tmp_path / "out", max_batch=32, parity_samples=1000)
    result = smx.certify(tmp_path / "out", n=50, stop=2, out=tmp_path / "c.jsonl")
    assert result.manifest.engine["batch_size"] == 32
    with pytest.raises(smx.BadInput, match="at most 32"):
        smx.certify(tmp_path / "out", n=50, stop=2, batch_size=64, out=tmp_path / "d.jsonl")


def test_altered_artefact_is_refused(digits_run, tmp_path):
    """A file that is not the one of its manifest is not run."""
    smx.export(digits_run, out=tmp_path / "out", parity_samples=1000)
    with open(tmp_path / "out" / "model.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(smx.CheckFailed, match="SHA-256"):
        smx.certify(tmp_path / "out", n=50, stop=2, out=tmp_path / "c.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["cifar-resnet110", "timm:resnet10t"])
def test_larger_networks_export(tmp_path, arch):
    """The paper's network, and one of timm's."""
    if arch.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    run = make_run(tmp_path / "run", arch, (3, 32, 32), None, "npz:nowhere.npz")
    assert smx.export(run, out=tmp_path / "out", parity_samples=1000).parity.passed


def test_config_survives_a_round_trip(tmp_path):
    """Tuples and None come back as they were."""
    run = make_run(tmp_path / "run", "lenet", (1, 28, 28), None, "mnist")
    config = read_config(run)
    write_config(run, replace(config, sigma=0.25))
    assert read_config(run) == replace(config, sigma=0.25)
