"""What surrounds a training run: probe, TensorBoard, plot, model card."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.certification.campaign import Campaign, engine_sampler
from smoothmix_deploy.data import InMemorySet, load_data, public_name
from smoothmix_deploy.models.build import BaseClassifier, build_model
from smoothmix_deploy.models.card import plain
from smoothmix_deploy.models.run_folder import load_model, read_config, read_metrics, save_weights, write_config
from smoothmix_deploy.training import probe as probes
from smoothmix_deploy.training.plot import write_training_plot
from smoothmix_deploy.training.probe import LiveModel, Probe

BUDGET = {"data": "digits", "method": "gaussian", "epochs": 3, "stop": 200, "batch_size": 64, "m": 2}


def make_probe(images, count, **changes):
    settings = {"every": 1, "radius": None, "sigma": 0.25, "epochs": 9, "batch_size": 64, "num_classes": 10, "seed": 0}
    return Probe(images, count, **{**settings, **changes}, device=torch.device("cpu"))


def test_probe_leaves_the_run_as_it_was(tmp_path, digits_run):
    """Weights bit for bit, metrics, and the state that a resumed run starts from: with a probe and without."""
    smx.train(out=tmp_path / "plain", **BUDGET)
    smx.train(out=tmp_path / "probed", probe=20, probe_every=2, **BUDGET)
    plain_bytes, probed = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("plain", "probed"))
    assert plain_bytes == probed
    lines = [read_metrics(tmp_path / n) for n in ("plain", "probed")]
    assert [("probe" in line) for line in lines[1]] == [False, True, True]  # every second, and the last
    drop = {"probe", "seconds", "images_per_second"}
    assert [{k: v for k, v in line.items() if k not in drop} for line in lines[1]] == [
        {k: v for k, v in line.items() if k not in drop} for line in lines[0]
    ]
    optimizers = [torch.load(tmp_path / n / "state.pt", weights_only=True)["optimizer"] for n in ("plain", "probed")]
    torch.testing.assert_close(optimizers[0], optimizers[1], rtol=0, atol=0)


def test_probe_changes_nothing_in_the_model_or_in_any_generator():
    """With dropout and batch normalisation, which would: buffers, gradients, flags and random states are what they were."""
    torch.manual_seed(0)
    layers = (
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Dropout(),
        torch.nn.Linear(144, 10),
    )
    model = BaseClassifier(torch.nn.Sequential(*layers), None)
    images = InMemorySet("x", "test", np.random.default_rng(0).random((6, 8, 8, 3), np.float32), np.arange(6))
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global one is what is looked at
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    make_probe(images, 6).measure(model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert (threads, tf32) == (torch.get_num_threads(), torch.backends.cudnn.allow_tf32)
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.train()(torch.rand(2, 3, 8, 8)).sum().backward()  # and it can be trained on


def test_probe_says_what_certify_says(digits_run, tmp_path):
    """The share of images that `certify --rule radius` certifies with the same noise, rule and batches."""
    model, test = load_model(digits_run, read_config(digits_run)).eval(), load_data("digits", split="test")
    probe = make_probe(test, 40, radius=0.2)
    found = probe.measure(model)
    assert (found.images, found.radius, found.n) == (40, 0.2, probes.N)
    images = test.subset(range(0, 360, 9))
    engine = LiveModel(model, test.shape, 10, 64, torch.device("cpu"))
    sample = engine_sampler(engine, images, 0.25, probe._key, "gaussian")
    campaign = Campaign(sample, 10, images, range(40), probe._rule, probes.N0, tmp_path / "c", lambda *a: None)
    written = []
    campaign.run(type("Writer", (), {"write": lambda self, c: written.append(c)})(), [])
    assert found.certified == sum(c.correct for c in written) / 40
    assert 0 < found.certified < 1
    assert found.samples == campaign.samples


def test_probe_repeats_itself():
    """The same network, the same answer: images and noise are fixed, whatever the batch size."""
    torch.manual_seed(1)
    model = build_model("digits-cnn", num_classes=10, input_shape=(1, 8, 8), mean_sd=None).eval()
    test = load_data("digits", split="test")
    first, second = (make_probe(test, 15, batch_size=b, radius=0.01).measure(model) for b in (32, 96))
    assert replace(first, seconds=0) == replace(second, seconds=0)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"probe": 361}, "--probe 361"),
        ({"probe": -1}, "--probe -1"),
        ({"probe": 5, "probe_every": 0}, "--probe-every 0"),
        ({"probe": 5, "probe_radius": 3.0}, "--probe-radius 3: must be at least 0 and well below 0.6"),
        ({"probe": 5, "probe_radius": -1.0}, "--probe-radius -1"),
        ({"probe": 5, "probe_radius": float("nan")}, "--probe-radius nan"),
    ],
)
def test_probes_that_cannot_be(tmp_path, options, word):
    """Refused before the folder is made."""
    with pytest.raises(smx.BadInput, match=word):
        smx.train(out=tmp_path / "run", **BUDGET, **options)
    assert not (tmp_path / "run").exists()


def test_probe_needs_test_images(tmp_path):
    """An archive has no test split."""
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 8, 8), np.uint8), y=np.arange(8) % 2)
    with pytest.raises(smx.BadInput, match="no test images"):
        smx.train(data=f"npz:{tmp_path / 'x.npz'}", arch="digits-cnn", sigma=0.5, probe=2, out=tmp_path / "run")


def test_tensorboard_has_every_number(tmp_path):
    """The scalars of the event file are those of metrics.jsonl, the probe's too; a resumed run goes on with them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    calls = []

    def stop_in_the_third_epoch(what, done, total, details):
        calls.append(done)
        if len(calls) == 10:
            raise KeyboardInterrupt

    with pytest.raises(smx.Stopped):
        smx.train(
            out=tmp_path / "run", probe=5, probe_every=2, tensorboard=True, progress=stop_in_the_third_epoch, **BUDGET
        )
    smx.train(out=tmp_path / "run", probe=5, probe_every=2, tensorboard=True, resume=True, **BUDGET)
    log = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = read_metrics(tmp_path / "run")
    for tag in ("loss", "lr", "noisy_accuracy", "train_accuracy"):
        events = log.Scalars(tag)
        assert [event.step for event in events] == [0, 1, 2]
        assert [event.value for event in events] == pytest.approx([line[tag] for line in lines], rel=1e-6)
    assert [event.step for event in log.Scalars("probe/certified")] == [1, 2]


def test_tensorboard_missing_names_the_extra(tmp_path, monkeypatch):
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert cli._run(["train", "--data", "digits", "--tensorboard", "--out", str(tmp_path / "r")], debug=False) == 4
    with pytest.raises(smx.Unavailable, match=r"smoothmix-deploy\[tensorboard\]"):
        smx.train(out=tmp_path / "r", tensorboard=True, **BUDGET)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("epochs", [1, 40])
def test_plot_of_any_run(tmp_path, epochs):
    """One epoch, many; losses of any method, gaps where nothing was measured. It is a picture with something on it."""
    from PIL import Image

    lines = [
        {"epoch": e, "lr": 0.1, "train_accuracy": e / 40, "loss": 2.0 / (e + 1), "robust": -0.1, "noisy_accuracy": None,
         **({"probe": {"certified": 0.5, "radius": 0.25, "images": 10}} if e % 7 == 0 else {})}
        for e in range(epochs)
    ]  # fmt: skip
    write_training_plot(lines, tmp_path / "p.png", "title")
    image = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert min(image.shape[:2]) > 500
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20


@pytest.fixture(scope="module")
def certified(digits_run, digits_export, tmp_path_factory):
    """Certificates of the ONNX export and of the run folder itself."""
    folder = tmp_path_factory.mktemp("certs")
    smx.certify(digits_export, engine="ort", n=500, stop=20, out=folder / "ort.jsonl", seed=1)
    smx.certify(digits_run, engine="torch", n=500, stop=10, rule="grid", grid=0.25, out=folder / "t.jsonl", seed=1)
    return [folder / "ort.jsonl", folder / "t.jsonl"]


def test_training_writes_a_card_without_figures(digits_run):
    """What is known of the model, and that nothing is certified yet."""
    text, config = (digits_run / "MODEL_CARD.md").read_text(), read_config(digits_run)
    for said in (
        "digits-cnn",
        "sigma 0.25",
        "1,437 images",
        config.data["digest"],
        "Not certified yet",
        "training.png",
    ):
        assert said in text
    parameters = sum(p.numel() for p in load_model(digits_run, config).parameters())
    assert f"{parameters:,} parameters" in text
    assert (digits_run / "training.png").stat().st_size > 5000
    assert "During training" not in text


def test_card_has_the_figures_of_its_certificates(digits_run, certified, tmp_path, capsys):
    """ACR, accuracy, abstentions and certified accuracy as `smx report` has them, n, alpha, engines, digests."""
    shutil.copytree(digits_run, tmp_path / "run")
    arguments = [word for path in certified for word in ("--certificates", str(path))]
    assert cli._run(["card", str(tmp_path / "run"), *arguments, "--json"], debug=False) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"path": str(tmp_path / "run" / "MODEL_CARD.md"), "certificates": 30}
    text = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    found = smx.report(*certified)
    for f in found.files:
        row = f" | {f.summary.acr:.3f} | {f.summary.accuracy:.3f} | {f.summary.abstained:.3f} | "
        assert row + " | ".join(f"{share:.3f}" for share in f.certified) in text
        assert f.manifest.artefact["sha256"] in text
    assert "of the 30 above, up to 0.03 in expectation" in text
    assert text.count("\n|---|") == 3
    tables = [line for line in text.splitlines() if line.startswith("| ort") or line.startswith("| engine")]
    assert len({line.count(" | ") for line in tables}) == 1


def test_front_matter_is_what_the_hub_reads(digits_run, certified, tmp_path):
    """Parsed by huggingface_hub itself: metadata, and every certified figure as an evaluation result."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra: hub)")
    smx.card(digits_run, certificates=certified, out=tmp_path / "card.md")
    data = hub.ModelCard((tmp_path / "card.md").read_text()).data
    assert (data.library_name, data.pipeline_tag) == ("smoothmix-deploy", "image-classification")
    assert "gaussian" in data.tags
    assert data.license is None
    first = smx.report(*certified).files[0]
    results = [r for r in data.eval_results if r.metric_args["engine"] == "ort"]
    values = {r.metric_name: r.metric_value for r in results}
    assert values["Average certified L2 radius (ACR)"] == first.summary.acr
    assert values["Certified accuracy at L2 radius 0.25"] == first.certified[1]
    assert "training.png" not in (tmp_path / "card.md").read_text()  # a card elsewhere has no picture beside it


def test_card_refuses_certificates_of_others(digits_run, certified, tmp_path):
    """Other weights, an edited line, an unfinished file: exit code 3 and no card."""
    other = shutil.copytree(digits_run, tmp_path / "other")
    model = load_model(other, read_config(other))
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    save_weights(other, model)
    with pytest.raises(smx.CheckFailed, match=r"line 1: these certificates are for weights .*another model"):
        smx.card(other, certificates=certified[:1], out=tmp_path / "card.md")
    lines = certified[0].read_text().splitlines()
    wrong = json.loads(lines[2])
    wrong["radius"] += 0.1
    (tmp_path / "edited.jsonl").write_text("\n".join([*lines[:2], json.dumps(wrong), *lines[3:], ""]))
    (tmp_path / "short.jsonl").write_text("\n".join([*lines[:-1], ""]))
    for name, word in (("edited", "line 3"), ("short", "19 of 20 images")):
        with pytest.raises(smx.CheckFailed, match=word):
            smx.card(digits_run, certificates=[tmp_path / f"{name}.jsonl"], out=tmp_path / "card.md")
    assert not (tmp_path / "card.md").exists()


def test_card_of_what_has_none(digits_export):
    """An export folder is not where training is described."""
    with pytest.raises(smx.BadInput, match="run folder"):
        smx.card(digits_export)


def test_probe_is_in_the_card(tmp_path):
    """As what it is."""
    result = smx.train(out=tmp_path / "run", probe=10, **{**BUDGET, "epochs": 1})
    share = result.metrics["probe"]["certified"]
    assert f"after epoch 1, {100 * share:.1f} % of 10 test images" in (tmp_path / "run/MODEL_CARD.md").read_text()


def test_cards_hold_no_paths_and_no_markup_of_strangers(digits_run, tmp_path):
    """Folders of this machine stay out; names from a file are text, whatever they contain."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    config = read_config(run)
    data = {**config.data, "name": "npz:/home/me/secret/x.npz", "root": "/home/me"}
    names = ["<script>", "a|b", "[x](http://evil)", "`c`\n# head", *"efghij"]
    write_config(run, replace(config, data=data, class_names=names))
    smx.card(run)
    text = (run / "MODEL_CARD.md").read_text()
    assert "/home/me" not in text
    assert "npz:x.npz" in text
    assert r"\<script\>, a\|b, \[x\](http://evil), \`c\` \# head" in text
    assert public_name("mnist") == "mnist"
    assert plain("a\nb") == "a b"


def test_bad_metrics_are_named(digits_run, tmp_path):
    """By line."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    good = (run / "metrics.jsonl").read_text()
    for bad in ("[]", "{", '{"epoch": 1}', '{"epoch": 1, "lr": 0.1, "probe": {"certified": "x"}}'):
        (run / "metrics.jsonl").write_text(good + bad + "\n")
        with pytest.raises(smx.BadInput, match=r"metrics\.jsonl, line 7"):
            smx.card(run)
