"""Our training steps against the authors' own: loss, gradients and BatchNorm statistics of one step.

`golden/smoothmix_steps.json` and `golden/baseline_steps.json` hold numbers recorded by running the authors' training
functions, unchanged, on inputs that are recreated here from seeds: PCG64's raw output and inverse distribution functions, no library's own sampling.

Tolerance. In float64 both sides agree to rounding (1e-14 to 1e-12), so the limit is 1e-9: tight enough for any wrong
constant, free of any argument about summation order. The float32 case is what training really runs: sums are taken in
another order (m forward passes of B images there, one of m * B here), and the attack's normalised steps feed such
differences back in. Float32 is 2e-6 away from float64 on that case, whence 1e-5 there.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from smoothmix_deploy.data import data_info
from smoothmix_deploy.models import build_model
from smoothmix_deploy.training.methods import step_function
from smoothmix_deploy.training.recipes import HyperParameters, hyper_parameter_names
from smoothmix_deploy.training.steps import Draws

FILES = [Path(__file__).parent / "golden" / name for name in ("smoothmix_steps.json", "baseline_steps.json")]
GOLDEN = {name: step for file in FILES for name, step in json.loads(file.read_text(encoding="utf-8"))["steps"].items()}
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
DATA = {"lenet": "mnist", "cifar-resnet20": "cifar10"}


def uniform(seed, name, shape):
    """Reproducible in every NumPy: 53 bits of PCG64's raw output, in (0, 1)."""
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(math.prod(shape))
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5).reshape(shape) * 2.0**-53


def weights(seed, gain, name, shape):
    """The recorded run's value of one entry of the network's state dict."""
    u = uniform(seed, name, shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return 0.5 + u
    if len(shape) > 1:
        return (2 * u - 1) * gain * math.sqrt(3 / math.prod(shape[1:]))
    return 0.75 + 0.5 * u if name.endswith(".weight") else 0.2 * (u - 0.5)


@pytest.fixture
def run_step():
    """A function from a golden record, with some of its settings changed, to (model after the backward pass, loss)."""
    default = torch.get_default_dtype()

    def run(golden, **changes):
        case = golden["case"] | changes
        seed, batch, m = case["seed"], case["batch"], case["m"]
        dtype = getattr(torch, case["dtype"])
        torch.set_default_dtype(dtype)
        info = data_info(DATA[case["arch"]])
        model = build_model(case["arch"], num_classes=10, input_shape=info.shape, mean_sd=info.mean_sd).train()
        model.net.load_state_dict(
            {k: torch.as_tensor(weights(seed, case["gain"], k, v.shape)) for k, v in model.net.state_dict().items()}
        )
        x = torch.as_tensor(uniform(seed, "images", (batch, *info.shape))).to(dtype)
        noise = torch.as_tensor(ndtri(uniform(seed, "noise", (m, *x.shape)))).to(dtype) * case["sigma"]
        lam = torch.as_tensor(uniform(seed, "lam", (batch,))).to(dtype) / 2
        named = {"attack_step_size" if key == "alpha" else key: value for key, value in case.items()}
        hp = HyperParameters(**{key: value for key, value in named.items() if key in hyper_parameter_names()})
        y = torch.tensor(golden["labels"])
        loss = step_function(case["method"])(model, x, y, Draws(noise, lam), hp, case["warmup"])
        loss.total.backward()
        return model, loss

    yield run
    torch.set_default_dtype(default)


def differences(seed, name, tensor, golden):
    """Of one tensor from its record: {what: difference relative to the tensor's scale}."""
    values = tensor.detach().double().numpy().ravel()
    probe = 2 * uniform(seed, "probe " + name, values.shape) - 1
    found = {
        "l2": (np.linalg.norm(values) - golden["l2"]) / golden["l2"],
        "l1": (abs(values).sum() - golden["l1"]) / golden["l1"],
        "max": (abs(values).max() - golden["max"]) / golden["max"],
        "sum": (values.sum() - golden["sum"]) / golden["l1"],
        "probe": (values @ probe - golden["probe"]) / golden["l1"],
    }
    for index, entry in golden["entries"].items():
        found[f"[{index}]"] = (values[int(index)] - entry) / golden["max"]
    return {f"{name} {what}": abs(float(value)) for what, value in found.items()}


def all_differences(golden, model, loss):
    """Everything recorded of a step, relative to its scale."""
    seed = golden["case"]["seed"]
    parts = {"loss": loss.total, **loss.parts}
    found = {name: abs(float(part.detach()) - golden[name]) / (abs(golden[name]) or 1) for name, part in parts.items()}
    gradients = {name: p.grad for name, p in model.net.named_parameters()}
    buffers = {name: b for name, b in model.net.named_buffers() if "running" in name}
    assert gradients.keys() == golden["gradients"].keys()
    assert buffers.keys() == golden.get("buffers", {}).keys()
    for name, gradient in gradients.items():
        found |= differences(seed, name, gradient, golden["gradients"][name])
    for name, buffer in buffers.items():
        found |= differences(seed, name, buffer, golden["buffers"][name])
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_step_equals_the_authors(name, run_step):
    """Loss, its parts, every parameter's gradient, BatchNorm's statistics."""
    golden = GOLDEN[name]
    model, loss = run_step(golden)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    limit = TOLERANCE[golden["case"]["dtype"]]
    off = {what: value for what, value in all_differences(golden, model, loss).items() if not value <= limit}
    assert not off


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lenet", {"attack_steps": 3}),
        ("lenet", {"alpha": 0.999}),
        ("lenet", {"eta": 5.001}),
        ("lenet-warmup", {"warmup": 1.0}),
        ("lenet-one-step-adversary", {"one_step_adversary": False}),
        ("lenet-one-step-adversary", {"warmup": 0.301}),
        ("lenet-max-norm", {"max_norm": None}),
        ("lenet-float32", {"warmup": 0.301}),
        ("cifar-resnet20", {"attack_steps": 1}),
        ("stability-lenet", {"lbd": 2.001}),
        ("smoothadv-lenet", {"attack_steps": 9}),
        ("smoothadv-lenet-warmup", {"warmup": 0.301}),
        ("macer-lenet", {"beta": 16.01}),
        ("macer-lenet-before", {"warmup": 1.0}),
        ("macer-lenet-margin", {"margin": 8.0}),
        ("consistency-lenet", {"eta": 0.501}),
    ],
)
def test_a_changed_step_is_noticed(name, changes, run_step):
    """The comparison has teeth: a slightly different step is far outside the tolerance."""
    golden = GOLDEN[name]
    found = all_differences(golden, *run_step(golden, **changes))
    assert max(found.values()) > 3 * TOLERANCE[golden["case"]["dtype"]]
    assert found["loss"] > TOLERANCE[golden["case"]["dtype"]]
