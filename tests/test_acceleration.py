"""How the network runs in training: layout, autocast and compilation change its speed, and only rounding else."""

import shutil

import pytest
import torch

import smoothmix_deploy as smx
from smoothmix_deploy.models.build import build_model
from smoothmix_deploy.models.run_folder import read_config
from smoothmix_deploy.training.acceleration import Accelerated


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("digits-cnn", num_classes=10, input_shape=(1, 8, 8), mean_sd=None)


X = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
ONE_BFLOAT16_STEP = 2.0**-8


def gradients(forward: torch.nn.Module, network: torch.nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    network.zero_grad()
    x = X.clone().requires_grad_(True)
    forward(x).logsumexp(1).sum().backward()
    return x.grad, [p.grad for p in network.parameters()]


def test_layout_changes_rounding_only(network):
    x_grad, weight_grads = gradients(network, network)
    x_fast, weight_fast = gradients(Accelerated(network), network)
    torch.testing.assert_close(x_fast, x_grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight_fast, weight_grads, rtol=1e-4, atol=1e-5)


def test_bf16_keeps_weights_gradients_and_logits_in_float32(network):
    exact = network(X)
    fast = Accelerated(network, precision="bf16")
    logits = fast(X)
    assert logits.dtype == torch.float32
    x_grad, weight_grads = gradients(fast, network)
    assert {x_grad.dtype, *(g.dtype for g in weight_grads), *(p.dtype for p in network.parameters())} == {torch.float32}
    error = (logits - exact).abs().max() / exact.abs().max()
    assert 0 < error < 4 * ONE_BFLOAT16_STEP  # it did run in bfloat16, through four layers


@pytest.mark.slow
def test_compiled_is_the_same_network(network):
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs g++ for the CPU")
    compiled = Accelerated(network, compile=True)
    torch.testing.assert_close(compiled(X), network(X), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(compiled, network)[0], gradients(network, network)[0], rtol=1e-5, atol=1e-6)


def test_a_failing_compiler_is_one_line(network, monkeypatch):
    def fail(*_):
        raise torch._dynamo.exc.TorchDynamoException("no working C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with pytest.raises(smx.Unavailable, match=r"--compile: torch.compile failed .*; train without it$"):
        Accelerated(network, compile=True)(X)


def test_bf16_trains_and_is_on_record(tmp_path):
    result = smx.train(out=tmp_path / "run", data="digits", epochs=3, precision="bf16", device="cpu")
    assert read_config(tmp_path / "run").hyper_parameters["precision"] == "bf16"
    assert result.metrics["noisy_accuracy"] > 0.6  # chance is 0.1
    with pytest.raises(smx.BadInput, match="precision bf16, now asked for fp32"):
        smx.train(out=tmp_path / "run", data="digits", epochs=3, precision="fp32", device="cpu", resume=True)
