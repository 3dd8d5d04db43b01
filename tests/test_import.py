"""`smx import`: checkpoints of the reference layout, made here with plain torch modules, become equal run folders."""

import collections
import pickle
import zipfile

import pytest
import torch
from torch import nn

import smoothmix_deploy as smx
from smoothmix_deploy.models.run_folder import load_model, read_config


def lenet():
    """The network of the MNIST checkpoints, from torch's own layers, under their names."""
    layers = {
        "conv1": nn.Conv2d(1, 20, 5),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(20, 50, 5),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(800, 500),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(500, 10),
    }
    torch.manual_seed(0)
    return nn.Sequential(collections.OrderedDict(layers)).eval()


@pytest.fixture(scope="module")
def source():
    """A trained network, as far as the importer can know."""
    return lenet()


def save(path, net, *, prefix="1.", arch="lenet", change=None, **extra):
    """A checkpoint with the reference's entries; `change` edits the state dict."""
    state = {prefix + name: value.clone() for name, value in net.state_dict().items()}
    if change is not None:
        change(state)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).state_dict()
    torch.save({"epoch": 90, "arch": arch, "state_dict": state, "optimizer": optimizer} | extra, path)
    return path


def refused(checkpoint, out, match, **options):
    """Asserts BadInput, one line that names the file, and no run folder; returns the message."""
    with pytest.raises(smx.BadInput, match=match) as caught:
        smx.import_checkpoint(checkpoint, **{"data": "mnist", "sigma": 0.5, "out": out} | options)
    message = str(caught.value)
    assert "\n" not in message
    assert checkpoint.name in message
    assert not out.exists()
    return message


@pytest.mark.parametrize("prefix", ["1.", "1.module.", "module.1.", "module.", ""])
def test_logits_are_the_source_networks(prefix, source, tmp_path):
    """With and without DataParallel and the normalisation layer's place in front."""
    checkpoint = save(tmp_path / "checkpoint.pth.tar", source, prefix=prefix)
    result = smx.import_checkpoint(checkpoint, data="mnist", sigma=0.5, out=tmp_path / "run")
    assert result.arch == "lenet"
    assert result.parameters == sum(p.numel() for p in source.parameters())
    config = read_config(result.path)
    assert (config.sigma, config.input_shape, config.num_classes, config.mean_sd) == (0.5, (1, 28, 28), 10, None)
    assert config.epochs_completed == 90
    x = torch.rand(32, 1, 28, 28) + 0.5 * torch.randn(32, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(load_model(result.path, config).eval()(x), source(x))


def test_normalisation_comes_from_the_data_set(tmp_path):
    """A CIFAR ResNet, BatchNorm statistics included: logits are those of the network behind (x - mean) / sd."""
    from smoothmix_deploy.models import build_model

    torch.manual_seed(1)
    net = build_model("cifar-resnet20", num_classes=10, input_shape=(3, 32, 32), mean_sd=None).net
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    checkpoint = save(tmp_path / "checkpoint.pth.tar", net, arch="cifar_resnet20")
    result = smx.import_checkpoint(checkpoint, data="cifar10", sigma=0.25, out=tmp_path / "run")
    assert result.arch == "cifar-resnet20"
    x = torch.rand(4, 3, 32, 32)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
    sd = torch.tensor([0.2023, 0.1994, 0.2010]).view(1, 3, 1, 1)
    imported = load_model(result.path, read_config(result.path)).eval()
    with torch.no_grad():
        assert torch.equal(imported(x), net.eval()((x - mean) / sd))


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_is_refused_and_not_run(form, source, tmp_path):
    """A checkpoint whose pickle calls a function, in each format that torch.load reads."""
    trace = tmp_path / "executed"
    content = {"epoch": 1, "arch": "lenet", "state_dict": dict(source.state_dict()), "optimizer": Payload(trace)}
    checkpoint = tmp_path / "checkpoint.pth.tar"
    if form == "plain pickle":
        checkpoint.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, checkpoint, _use_new_zipfile_serialization=form == "zip")
    refused(checkpoint, tmp_path / "run", "refused")
    assert not trace.exists()
    torch.load(checkpoint, weights_only=False) if form != "plain pickle" else pickle.loads(checkpoint.read_bytes())
    assert trace.exists()  # the file was armed


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_file(share, source, tmp_path):
    """Cut anywhere."""
    checkpoint = save(tmp_path / "checkpoint.pth.tar", source)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(share * len(whole))])
    refused(checkpoint, tmp_path / "run", "not a readable|refused")


@pytest.mark.parametrize(
    "content", [b"\x89PNG not a checkpoint", b"text\n", b"\x80\x02]q\x00.", b"\x80", b"\x80\x02}q\x00X\x01\x00\x00"]
)
def test_foreign_file(content, tmp_path):
    """Not a checkpoint at all."""
    checkpoint = tmp_path / "checkpoint.pth.tar"
    checkpoint.write_bytes(content)
    refused(checkpoint, tmp_path / "run", "checkpoint")


def test_foreign_zip(tmp_path):
    """A zip file, like a checkpoint, but of something else."""
    checkpoint = tmp_path / "checkpoint.pth.tar"
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    refused(checkpoint, tmp_path / "run", "checkpoint")


def test_missing_file_and_folder(tmp_path):
    """Neither is a checkpoint."""
    refused(tmp_path / "nowhere.pth.tar", tmp_path / "run", "no such file")
    (tmp_path / "folder.pth.tar").mkdir()
    refused(tmp_path / "folder.pth.tar", tmp_path / "run", "not a readable")


@pytest.mark.parametrize(
    ("arch", "data", "match"),
    [
        ("cifar_resnet20", "cifar10", "do not fit --arch cifar-resnet20"),
        ("digits-cnn", "digits", "do not fit --arch digits-cnn"),
    ],
)
def test_wrong_arch(arch, data, match, source, tmp_path):
    """Weights of another network."""
    refused(save(tmp_path / "checkpoint.pth.tar", source), tmp_path / "run", match, arch=arch, data=data)


def test_arch_that_no_one_knows_or_that_cannot_take_the_images(source, tmp_path):
    """Named by the checkpoint or by --arch."""
    for changes in ({"arch": "no-such-net"}, {"data": "cifar10"}):
        with pytest.raises(smx.BadInput, match=r"--arch (no-such-net|lenet)"):
            smx.import_checkpoint(
                save(tmp_path / "checkpoint.pth.tar", source),
                **{"data": "mnist", "sigma": 0.5, "out": tmp_path / "run"} | changes,
            )
    checkpoint = save(tmp_path / "checkpoint.pth.tar", source, arch=None)
    refused(checkpoint, tmp_path / "run", "names no arch; pass --arch")
    smx.import_checkpoint(checkpoint, data="mnist", sigma=0.5, out=tmp_path / "run", arch="lenet")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, source, tmp_path):
    """One bad weight among 431,080."""

    def spoil(state):
        state["1.fc1.weight"][3, 5] = value

    message = refused(save(tmp_path / "c.pth.tar", source, change=spoil), tmp_path / "run", "NaN or infinite")
    assert "fc1.weight" in message


def test_weights_too_large_for_float32(source, tmp_path):
    """Finite in the file, infinite in the network."""

    def spoil(state):
        state["1.fc2.bias"] = torch.full((10,), 1e300, dtype=torch.float64)

    refused(save(tmp_path / "c.pth.tar", source, change=spoil), tmp_path / "run", r"fc2\.bias has NaN or infinite")


def test_a_checkpoint_cannot_choose_code_to_import(source, tmp_path, monkeypatch):
    """`pkg.module:callable` is the user's to name, not the file's."""
    (tmp_path / "code_beside_checkpoint.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('executed').touch()\nmake = None\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = save(tmp_path / "c.pth.tar", source, arch="code_beside_checkpoint:make")
    refused(checkpoint, tmp_path / "run", "pass --arch")
    assert not (tmp_path / "executed").exists()


def test_incomplete_and_overfull_state(source, tmp_path):
    """A missing, an extra, a misshapen and a non-tensor entry; no entries; no state_dict."""
    edits = (
        lambda state: state.pop("1.conv2.bias"),
        lambda state: state.update({"1.conv3.bias": torch.zeros(3)}),
        lambda state: state.update({"1.fc2.bias": torch.zeros(11)}),
        lambda state: state.update({"1.fc2.bias": [0.0] * 10}),
        lambda state: state.clear(),
    )
    for change in edits:
        refused(save(tmp_path / "c.pth.tar", source, change=change), tmp_path / "run", "do not fit|not a tensor")
    refused(save(tmp_path / "c.pth.tar", source, state_dict=[1, 2]), tmp_path / "run", "expected a dict")


def test_sigma_and_out_are_checked(source, tmp_path):
    """sigma must be positive and finite; a run folder is not overwritten."""
    checkpoint = save(tmp_path / "checkpoint.pth.tar", source)
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(smx.BadInput, match="--sigma"):
            smx.import_checkpoint(checkpoint, data="mnist", sigma=sigma, out=tmp_path / "run")
    smx.import_checkpoint(checkpoint, data="mnist", sigma=0.5, out=tmp_path / "run")
    with pytest.raises(smx.BadInput, match="already a run folder"):
        smx.import_checkpoint(checkpoint, data="mnist", sigma=0.5, out=tmp_path / "run")
