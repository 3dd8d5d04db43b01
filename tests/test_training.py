"""Training: the attack, the schedule, exact resumption, and what a run folder holds."""

import itertools
import json
import math
import signal

import numpy as np
import pytest
import torch

import smoothmix_deploy as smx
from smoothmix_deploy.data import InMemorySet, LazySet
from smoothmix_deploy.models.build import build_model
from smoothmix_deploy.models.run_folder import load_model, read_config
from smoothmix_deploy.training import loop
from smoothmix_deploy.training.attack import adversarial_path, project
from smoothmix_deploy.training.batches import BatchSource, crop_flip, draw_crop_flip
from smoothmix_deploy.training.division import Division
from smoothmix_deploy.training.gaussian import gaussian_step
from smoothmix_deploy.training.methods import METHODS
from smoothmix_deploy.training.recipes import HyperParameters
from smoothmix_deploy.training.record import RunRecord
from smoothmix_deploy.training.schedule import learning_rate
from smoothmix_deploy.training.smoothmix import smoothmix_step
from smoothmix_deploy.training.state import all_finite, read_state
from smoothmix_deploy.training.steps import Draws, StepLoss

pytestmark = pytest.mark.usefixtures("undrawn")

BUDGET = {
    "data": "digits", "epochs": 3, "stop": 200, "batch_size": 64, "m": 2, "attack_steps": 2, "warmup_epochs": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights that BUDGET gives with Gaussian training when nothing happens."""
    run = smx.train(out=tmp_path_factory.mktemp("uninterrupted"), method="gaussian", **BUDGET)
    return (run.path / "model.safetensors").read_bytes()


def model_and_batch(batch=5, m=3):
    torch.manual_seed(0)
    model = build_model("digits-cnn", num_classes=10, input_shape=(1, 8, 8), mean_sd=None).double()
    x = torch.rand(batch, 1, 8, 8, dtype=torch.float64) * 0.6 + 0.2
    y = torch.arange(batch) % 10
    return model, x, y, 0.25 * torch.randn(m, batch, 1, 8, 8, dtype=torch.float64)


def smoothed_loss(model, x, y, noise):
    """-log of the mean softmax of the true class, one draw at a time: the definition."""
    p = sum(model(x + d).softmax(dim=1) for d in noise) / len(noise)
    return -p[torch.arange(len(x)), y].log()


def test_attack_goes_uphill_by_the_step_size():
    """Each step moves every sample by alpha (where nothing is clipped) and raises the smoothed loss."""
    model, x, y, noise = model_and_batch()
    model.eval().requires_grad_(False)
    first, last = adversarial_path(model, x, y, noise, steps=3, step_size=0.05)
    torch.testing.assert_close((first - x).flatten(1).norm(dim=1), torch.full((5,), 0.05, dtype=torch.float64))
    at_start, at_first, at_last = (smoothed_loss(model, p, y, noise) for p in (x, first, last))
    assert (at_first > at_start).all()
    assert (at_last > at_first).all()


def test_attack_follows_the_gradient_of_the_definition():
    """The batched draws give the direction of the one-by-one definition."""
    model, x, y, noise = model_and_batch()
    x = x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(smoothed_loss(model, x, y, noise).sum(), x)
    direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    first, _ = adversarial_path(model, x.detach(), y, noise, steps=1, step_size=0.05)
    torch.testing.assert_close((first - x).detach() / 0.05, direction, rtol=1e-6, atol=1e-6)


def test_projection():
    """Within the ball and the image range."""
    x = torch.full((2, 1, 8, 8), 0.5)
    moved = x + torch.tensor([0.2, 0.001]).view(2, 1, 1, 1)
    found = project(moved, x, 0.4)
    assert (found - x).flatten(1).norm(dim=1)[0] == pytest.approx(0.4, rel=1e-5)
    torch.testing.assert_close(found[1], moved[1])
    assert project(x + 3, x, None).max() == 1.0


def test_step_leaves_the_model_as_it_was():
    """Training mode and parameter gradients survive the attack."""
    model, x, y, noise = model_and_batch()
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    smoothmix_step(model, x, y, Draws(noise, torch.rand(5, dtype=torch.float64) / 2), HyperParameters(), 1.0)
    assert model.training
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in list(model.parameters())[1:])


def test_learning_rate():
    """Step: drops at whole multiples. Smooth ones: rise (one-cycle) and end near zero."""
    step = HyperParameters(lr=1.0, lr_step=3, epochs=9)
    assert [learning_rate(step, e, 0.5) for e in (0, 2, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])
    cycle = HyperParameters(lr=1.0, epochs=10, schedule="one-cycle")
    rates = [learning_rate(cycle, e, 0.0) for e in range(10)]
    assert max(rates) == rates[3] == pytest.approx(1.0)
    assert learning_rate(cycle, 9, 0.999) < 0.01
    assert learning_rate(HyperParameters(lr=1.0, epochs=10, schedule="cosine"), 5, 0.0) == pytest.approx(0.5)


def test_augmentation_crops_and_flips():
    """Every result is some crop of the padded image or of its mirror image; both happen."""
    x = torch.arange(1, 2 * 3 * 32 * 32 + 1, dtype=torch.float32).view(2, 3, 32, 32).repeat(32, 1, 1, 1)
    found = crop_flip(x, draw_crop_flip(len(x), torch.Generator().manual_seed(0)))
    flips = 0
    for original, result in zip(x, found, strict=True):
        matches = []
        for flipped, image in ((False, original), (True, original.flip(2))):
            padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
            windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # [3, 9, 9, 32, 32]
            matches += [flipped for r in range(9) for c in range(9) if torch.equal(windows[:, r, c], result)]
        assert len(matches) == 1
        flips += matches[0]
    assert 16 <= flips <= 48


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path, method):
    """Ctrl-C in the middle of an epoch, then --resume: the weights of an uninterrupted run, and its metrics."""
    smx.train(out=tmp_path / "whole", method=method, **BUDGET)
    calls = 0

    def interrupt(what, done, total, details):
        nonlocal calls
        calls += 1
        if calls == 6:  # of 4 batches an epoch
            raise KeyboardInterrupt

    with pytest.raises(smx.Stopped, match="--resume"):
        smx.train(out=tmp_path / "parts", method=method, progress=interrupt, **BUDGET)
    smx.train(out=tmp_path / "parts", method=method, resume=True, **BUDGET)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    timing = {"seconds", "images_per_second"}
    metrics = [
        [
            {k: v for k, v in json.loads(line).items() if k not in timing}
            for line in (tmp_path / name / "metrics.jsonl").open()
        ]
        for name in ("whole", "parts")
    ]
    assert metrics[0] == metrics[1]
    assert [line["epoch"] for line in metrics[0]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("stability", {"batch_size": 32, "lr": 0.1}),
        ("smoothadv", {"batch_size": 32, "lr": 0.1, "max_norm": 0.5}),
        ("macer", {"batch_size": 16, "m": 4, "lr_step": 3}),
        ("consistency", {"batch_size": 32, "lr": 0.1}),
    ],
)
def test_baselines_learn(tmp_path, method, options):
    """A minute's training would do better; chance is 0.1. MACER's robust term comes on in the fourth epoch."""
    run = smx.train(out=tmp_path, method=method, **{**BUDGET, "epochs": 5, "stop": 600, "warmup_epochs": 3, **options})
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").open()]
    natural = [line.get("natural", line["loss"]) for line in lines]
    assert natural[-1] < 0.9 * natural[0]
    assert lines[-1]["noisy_accuracy"] > 0.5
    if method == "macer":
        assert [line["robust"] > 0 for line in lines] == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("method", "sizes"),
    [("smoothmix", [16] * 12 + [2] * 4), ("stability", [16] * 12 + [2] * 4), ("macer", [64] * 3 + [8])],
)
def test_steps_of_a_loaded_batch(tmp_path, monkeypatch, method, sizes):
    """m steps on 1/m of its images each; MACER, as published, one on all. The last batch has 8 images."""
    seen = []
    step = METHODS[method]

    def spy(model, x, y, draws, hp, warmup):
        seen.append(len(x))
        assert draws.noise_MBCHW.shape == (4, *x.shape)
        return step(model, x, y, draws, hp, warmup)

    monkeypatch.setitem(METHODS, method, spy)
    smx.train(out=tmp_path, method=method, **{**BUDGET, "epochs": 1, "warmup_epochs": 0, "m": 4})
    assert seen == sizes


@pytest.mark.parametrize("batch", [1, 4, 8, 11, 12])
def test_stop_is_honoured_after_the_batch_at_hand(tmp_path, batch, uninterrupted):
    """A real signal at any batch, the last of an epoch and of the run too: nothing is lost, and --resume goes on."""
    seen = []

    def press(what, done, total, details):
        seen.append(done)
        if len(seen) == batch:  # of 4 an epoch, 3 epochs
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(smx.Stopped, match="--resume"):
        smx.train(out=tmp_path / "parts", method="gaussian", progress=press, **BUDGET)
    assert len(seen) == batch
    assert signal.getsignal(signal.SIGINT) is handler
    seen.clear()
    smx.train(out=tmp_path / "parts", method="gaussian", resume=True, progress=lambda *a: seen.append(a), **BUDGET)
    assert len(seen) == 12 - batch  # no batch is trained twice
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == uninterrupted


def test_epochs_take_every_image_once_in_orders_of_their_own():
    """A permutation an epoch, a function of (seed, epoch); an epoch can be entered anywhere."""
    images = InMemorySet("n", "train", np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1), np.arange(50) % 2)
    source = BatchSource(images, 16, "none", 0, torch.device("cpu"))

    def order(epoch, first=0):
        return [round(float(v) * 255) for b in source.epoch(epoch, first) for v in b.x_BCHW.flatten()]

    assert sorted(order(0)) == sorted(order(1)) == list(range(50))
    assert order(0) == order(0) != order(1)
    assert order(1, first=2) == order(1)[32:]
    other = BatchSource(images, 16, "none", 1, torch.device("cpu"))
    assert [b.x_BCHW.sum() for b in other.epoch(0)] != [b.x_BCHW.sum() for b in source.epoch(0)]


def test_after_epoch_adds_to_the_line_and_changes_nothing_else(tmp_path, monkeypatch, uninterrupted):
    """Called once an epoch with the model in eval mode; what it returns is in metrics.jsonl; the weights are the same."""
    seen = []

    def after_epoch(model, line):
        assert not model.training
        seen.append(line["epoch"])
        return {"extra": line["epoch"] * 10}

    monkeypatch.setattr(RunRecord, "after_epoch", lambda self, model, line: after_epoch(model, line))
    result = smx.train(out=tmp_path / "hooked", method="gaussian", **BUDGET)
    assert seen == [0, 1, 2]
    lines = [json.loads(line) for line in (tmp_path / "hooked" / "metrics.jsonl").open()]
    assert [line["extra"] for line in lines] == [0, 10, 20]
    assert result.metrics["extra"] == 20
    assert (tmp_path / "hooked" / "model.safetensors").read_bytes() == uninterrupted


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64, np.float16, ">f4"])
def test_batches_in_memory_have_the_images_to_the_bit(kind):
    """What is gathered and converted on the device is what the image set gives."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 5, 4, 3), np.uint8) if kind == np.uint8 else rng.random((40, 5, 4, 3)).astype(kind)
    images = InMemorySet("n", "train", x, np.arange(40) % 3)
    order = np.random.default_rng([7, 2]).permutation(40)
    batches = list(BatchSource(images, 16, "none", 7, torch.device("cpu")).epoch(2))
    assert torch.cat([b.x_BCHW for b in batches]).numpy().tobytes() == images.batch(order).tobytes()
    assert torch.cat([b.y_B for b in batches]).tolist() == images.labels[order].tolist()
    assert [b.size for b in batches] == [16, 16, 8]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_processes_have_their_rows_of_each_mini_batch(lazy, augment, tmp_path):
    """Order and augmentation are those of one process, whoever loads the image."""
    from PIL import Image

    x = np.random.default_rng(0).integers(0, 256, (29, 8, 8, 1), np.uint8)
    images = InMemorySet("n", "train", x, np.arange(29) % 2)
    if lazy:
        for i, image in enumerate(x):
            Image.fromarray(image[:, :, 0]).save(tmp_path / f"{i}.png")
        images = LazySet("n", "train", [(tmp_path / f"{i}.png", i % 2) for i in range(29)], ["a", "b"])

    def batches(division):
        return list(BatchSource(images, 22, augment, 0, torch.device("cpu"), m=2, division=division).epoch(1))

    whole = batches(Division())
    assert [batch.size for batch in whole] == [11, 3]
    parts = [batches(Division(rank, 4, 1)) for rank in range(4)]
    for number, size in enumerate([11, 3]):  # 3 images are not divided among 4
        for mini in range(2):
            expected = whole[number].x_BCHW[mini * size : (mini + 1) * size]
            for rank, own in enumerate(parts):
                (rows,) = Division(rank, 4, 1).rows(size)
                count = rows.stop - rows.start
                found = own[number].x_BCHW[mini * count : (mini + 1) * count]
                assert torch.equal(found, expected[rows])
                assert own[number].size == size


def test_an_image_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    """Whatever the decoder raises: the file's name, exit code 2, what was trained is kept, and the repaired run goes on."""
    from PIL import Image

    for i in range(24):
        path = tmp_path / "images" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 10 * i).save(path)
    options = {"data": f"folder:{tmp_path / 'images'}", "arch": "lenet", "sigma": 0.5, "epochs": 2, "batch_size": 8}
    options |= {"m": 2, "attack_steps": 1}
    smx.train(out=tmp_path / "whole", **options)
    image = LazySet.image
    for error, words in (
        (ZeroDivisionError("odd"), "ZeroDivisionError: odd"),
        (smx.BadInput("gone.png: no"), "gone.png"),
    ):
        calls = itertools.count()

        def dying(self, i, error=error, calls=calls):
            if next(calls) == 20:
                raise error
            return image(self, i)

        monkeypatch.setattr(LazySet, "image", dying)
        with pytest.raises(smx.BadInput, match=words) as problem:
            smx.train(out=tmp_path / "run", resume=True, **options)
        assert ".png" in str(problem.value)
        assert "\n" not in str(problem.value)
    assert json.loads(read_state(tmp_path / "run")["position"])["batch"] == 1  # 2 of epoch 0, then 2 more
    monkeypatch.undo()
    smx.train(out=tmp_path / "run", resume=True, **options)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == parts


def test_seeds_matter(tmp_path):
    """Another seed, other weights."""
    for seed in (0, 1):
        smx.train(out=tmp_path / str(seed), method="gaussian", seed=seed, **{**BUDGET, "epochs": 1})
    assert (tmp_path / "0/model.safetensors").read_bytes() != (tmp_path / "1/model.safetensors").read_bytes()


def test_run_folder_rebuilds_the_model(tmp_path):
    """config.json says everything that is needed."""
    result = smx.train(out=tmp_path / "run", method="gaussian", **{**BUDGET, "epochs": 1})
    config = read_config(result.path)
    assert (config.arch, config.sigma, config.num_classes, config.input_shape) == ("digits-cnn", 0.25, 10, (1, 8, 8))
    assert config.epochs_completed == 1
    assert config.hyper_parameters["epochs"] == 1
    assert config.data["images"] == 200
    logits = load_model(result.path, config)(torch.zeros(1, 1, 8, 8))
    assert logits.shape == (1, 10)


def test_diverging_training_says_so(tmp_path):
    """A loss that is not finite stops the run with the step, and the last good state stays."""
    with pytest.raises(smx.CheckFailed, match="diverged"):
        smx.train(out=tmp_path / "run", method="gaussian", lr=1e20, schedule="step", **BUDGET)


@pytest.mark.parametrize("look", [1, 3, 50])
@pytest.mark.parametrize("bad", [1, 2, 9, 12, 24])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_no_state_after_a_bad_step_is_saved(kind, bad, look, tmp_path, monkeypatch):
    """However seldom the loss is looked at (on a GPU) and wherever it breaks: the step is named, the state is good."""
    calls = 0

    def step(model, *arguments):
        nonlocal calls
        calls += 1
        loss = gaussian_step(model, *arguments)
        if calls != bad:
            return loss
        nothing = 0 * next(model.parameters()).sum()
        total = loss.total + (
            nothing / nothing if kind == "loss" else nothing.sqrt()
        )  # the root's slope at 0 is infinite
        return StepLoss(total, loss.correct)

    monkeypatch.setattr(loop, "step_function", lambda method: step)
    monkeypatch.setattr(loop, "_CHECK_EVERY", {"cpu": look})
    with pytest.raises(smx.CheckFailed, match="diverged") as problem:
        smx.train(out=tmp_path / "run", method="gaussian", save_every=0, **BUDGET)
    # 8 updates an epoch, 2 a batch; a bad gradient shows in the next loss, or when the state is to be saved.
    epoch, batch, number = (bad - 1) // 8, (bad - 1) % 8 // 2, (bad - 1) % 2
    named = f"the loss is nan in epoch {epoch}, batch {batch}, step {number}"
    if kind == "gradient":
        saved_next = number == 1
        named = "weights are not finite" if saved_next else f"the loss is nan in epoch {epoch}, batch {batch}, step 1"
    assert named in str(problem.value)
    state = read_state(tmp_path / "run")
    assert all_finite(state)
    position = json.loads(state["position"])
    assert 8 * position["epoch"] + 2 * position["batch"] == (bad - 1) // 2 * 2
    assert all(math.isfinite(value) for value in position["sums"].values())


def test_a_loss_seldom_looked_at_is_named_all_the_same(tmp_path, monkeypatch):
    """As on a GPU: one look an epoch finds the step, and the state is that of the epoch before."""
    calls = itertools.count()

    def step(model, *arguments):
        loss = gaussian_step(model, *arguments)
        return StepLoss(loss.total * (math.inf if next(calls) in (13, 14) else 1), loss.correct)

    monkeypatch.setattr(loop, "step_function", lambda method: step)
    monkeypatch.setattr(loop, "_CHECK_EVERY", {})
    with pytest.raises(smx.CheckFailed, match="the loss is inf in epoch 1, batch 2, step 1"):
        smx.train(out=tmp_path / "run", method="gaussian", **BUDGET)
    position = json.loads(read_state(tmp_path / "run")["position"])
    assert (position["epoch"], position["batch"]) == (1, 0)


def test_other_data_on_resume_is_refused(tmp_path):
    """Going on with other images, or other options, would be another run."""
    smx.train(out=tmp_path / "run", method="gaussian", **{**BUDGET, "epochs": 1})
    for change, word in (
        ({"stop": 150}, "images"),
        ({"lr": 0.5}, "lr"),
        ({"seed": 3}, "seed"),
        ({"sigma": 0.5}, "sigma"),
    ):
        with pytest.raises(smx.BadInput, match=word):
            smx.train(out=tmp_path / "run", method="gaussian", resume=True, **{**BUDGET, "epochs": 1, **change})


def test_lazy_and_memory_sets_train(tmp_path):
    """Image files (folder:) and arrays (npz:) both train; classes keep their names."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(tmp_path / f"images/train/{name}/{i}.png")
    small = {"arch": "lenet", "sigma": 0.5, "epochs": 1, "batch_size": 8, "m": 2, "attack_steps": 1}
    result = smx.train(out=tmp_path / "run", data=f"folder:{tmp_path / 'images'}", **small)
    assert read_config(result.path).class_names == ["cat", "dog"]
    np.savez(tmp_path / "x.npz", x=rng.integers(0, 256, (16, 28, 28), np.uint8), y=np.arange(16) % 3)
    result = smx.train(out=tmp_path / "run2", data=f"npz:{tmp_path / 'x.npz'}", **small)
    assert read_config(result.path).num_classes == 3
