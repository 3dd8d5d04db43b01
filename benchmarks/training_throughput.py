"""SmoothMix training images/s against the authors' own loop, and both loss curves from the same weights, in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/training_throughput.py --reference CODE --data-root DATA --out OUT

CODE is the folder `code` of a checkout of jh-jeong/smoothmix; its `train.train` and its attack run unmodified, on tensors
in memory instead of its data loader's workers (which only helps it). LeNet on MNIST, sigma 0.5, m = 4, T = 4, batches of
256 images. Rounds alternate between the authors' loop and `smx train` in each variant, an epoch of --images each, and
ratios are taken within a round. Then both train for --epochs epochs, from the same weights on the same images, for each
seed: the curves' distance is given beside their spread over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import types
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time

import numpy as np
import torch

import smoothmix_deploy as smx
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.data import load_data
from smoothmix_deploy.files import write_json, write_text
from smoothmix_deploy.models.build import build_model

SIGMA, M, T, STEP_SIZE, ETA, LR, BATCH, WARMUP = 0.5, 4, 4, 1.0, 5.0, 0.01, 256, 10
VARIANTS: dict[str, dict[str, object]] = {
    "fp32": {},
    "fp32 compiled": {"compile": True},
    "bf16": {"precision": "bf16"},
    "bf16 compiled": {"precision": "bf16", "compile": True},
}


class Reference:
    """The authors' loop around a network with our initial weights."""

    def __init__(self, code: Path, seed: int, device: torch.device) -> None:
        if "train" not in sys.modules:
            board = types.ModuleType("tensorboardX")
            board.SummaryWriter = object  # type: ignore[attr-defined]
            sys.modules.setdefault("tensorboardX", board)
            sys.path.insert(0, str(code))
            argv, sys.argv = sys.argv, ["train.py", "mnist", "lenet"]
            import train

            sys.argv = argv
            vars(train.args).update(
                n_classes=10, num_noise_vec=M, eta=ETA, warmup=WARMUP, print_freq=10**9, noise_sd=SIGMA
            )
        from architectures import get_architecture

        self._code, self._device = sys.modules["train"], device
        self._network = get_architecture("lenet", "mnist").to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            ours = build_model("lenet", num_classes=10, input_shape=(1, 28, 28), mean_sd=None)
        with torch.no_grad():
            for theirs, value in zip(self._network.parameters(), ours.parameters(), strict=True):
                theirs.copy_(value)
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)

    def epoch(self, number: int, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        """(mean loss, images/s) of one epoch."""
        code = self._code
        code.args.warmup_v = min(1.0, (number + 1) / WARMUP)
        attacker = code.SmoothMix_PGD(steps=T, mix_step=0, alpha=STEP_SIZE, maxnorm=None, maxnorm_s=0.0)
        order = torch.randperm(len(x))
        batches = [(x[i], y[i]) for i in order.split(BATCH)]
        begin = time.perf_counter()
        writer = types.SimpleNamespace(add_scalar=lambda *_: None)
        loss = code.train(batches, self._network, self._optimizer, number, SIGMA, attacker, self._device, writer)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return loss, len(x) / (time.perf_counter() - begin)


def ours(folder: Path, a: argparse.Namespace, images: int, epochs: int, seed: int, **variant) -> list[dict]:
    """Metrics of every epoch of `smx train` in this variant."""
    smx.train(
        out=folder, data="mnist", data_root=a.data_root, stop=images, arch="lenet", method="smoothmix", sigma=SIGMA, m=M,
        attack_steps=T, attack_step_size=STEP_SIZE, eta=ETA, lr=LR, lr_step=10**6, schedule="step", batch_size=BATCH,
        warmup_epochs=WARMUP, epochs=epochs, seed=seed, device=a.device, **variant,
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def throughput(a: argparse.Namespace, x: torch.Tensor, y: torch.Tensor, work: Path, device: torch.device) -> dict:
    """Images/s, round by round: {"reference": [...], variant: [...]}; the second of two epochs counts (compilation)."""
    rates: dict[str, list[float]] = {"reference": [], **{name: [] for name in a.variants}}
    reference = Reference(a.reference, 0, device)
    for round_ in range(a.rounds):
        rates["reference"].append(reference.epoch(round_, x[: a.images], y[: a.images])[1])
        for name in a.variants:
            lines = ours(work / f"{name}-{round_}", a, a.images, 2, round_, **VARIANTS[name])
            rates[name].append(lines[-1]["images_per_second"])
        print({name: round(found[-1]) for name, found in rates.items()}, file=sys.stderr)
    return rates


def curves(a: argparse.Namespace, x: torch.Tensor, y: torch.Tensor, work: Path, device: torch.device) -> dict:
    """Mean loss of every epoch: {"reference": [seeds][epochs], variant: ...}."""
    losses: dict[str, list[list[float]]] = {"reference": [], **{name: [] for name in a.variants}}
    for seed in range(a.seeds):
        torch.manual_seed(seed)
        reference = Reference(a.reference, seed, device)
        losses["reference"].append([reference.epoch(e, x[: a.images], y[: a.images])[0] for e in range(a.epochs)])
        for name in a.variants:
            lines = ours(work / f"curve-{name}-{seed}", a, a.images, a.epochs, seed, **VARIANTS[name])
            losses[name].append([line["loss"] for line in lines])
        print(f"seed {seed}: {[round(v[-1][-1], 4) for v in losses.values()]}", file=sys.stderr)
    return losses


def text_of(rates: dict, losses: dict, a: argparse.Namespace) -> list[str]:
    """The page."""
    lines = ["| | images/s | times the authors' loop (rounds) |", "|---|---:|---|"]
    for name, found in rates.items():
        ratios = np.array(found) / np.array(rates["reference"])
        shown = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})" if name != "reference" else ""
        lines.append(f"| {'the authors' if name == 'reference' else name} | {np.median(found):,.0f} | {shown} |")
    lines += ["", f"Medians of {a.rounds} rounds of {a.images:,} images.", ""]
    if not losses["reference"]:
        return lines
    lines += [f"Mean loss of an epoch of {a.images:,} images, {a.seeds} seeds (mean, spread between seeds):", ""]
    lines += ["| epoch | " + " | ".join("the authors" if n == "reference" else n for n in losses) + " |"]
    lines += ["|---:|" + "---:|" * len(losses)]
    for epoch in range(a.epochs):
        cells = (np.array([one[epoch] for one in found]) for found in losses.values())
        lines.append(f"| {epoch + 1} | " + " | ".join(f"{c.mean():.4f} +- {np.ptp(c) / 2:.4f}" for c in cells) + " |")
    return lines


def plot(losses: dict, path: Path) -> None:
    """The curves over each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, found) in enumerate(losses.items()):
        for seed, one in enumerate(found):
            label = ("the authors' loop" if name == "reference" else f"smx train, {name}") if seed == 0 else None
            axes.plot(range(1, len(one) + 1), one, color=f"C{number}", lw=1.2, alpha=0.8, label=label)
    axes.set(xlabel="epoch", ylabel="mean loss")
    axes.set_title("SmoothMix, LeNet, MNIST, sigma 0.5: same weights, same images", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="folder `code` of jh-jeong/smoothmix")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", default="fp32,bf16", type=lambda text: text.split(","), help="a comma between")
    parser.add_argument("--out", type=Path, help="writes OUT.json, OUT.md and OUT.png")
    a = parser.parse_args()
    device = torch.device(a.device)
    images = load_data("mnist", root=a.data_root, split="train")
    count = max(a.images, 1)
    x = torch.from_numpy(images.batch(np.arange(count))).to(device)
    y = torch.from_numpy(images.labels[:count]).to(device)
    with tempfile.TemporaryDirectory() as folder:
        rates = throughput(a, x, y, Path(folder), device)
        losses = curves(a, x, y, Path(folder), device)
    machine = environment()
    lines = text_of(rates, losses, a)
    lines += ["", f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}."]
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".")
    command = (
        f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/training_throughput.py --reference CODE"
    )
    command += f" --data-root DATA --device {a.device} --images {a.images} --rounds {a.rounds} --epochs {a.epochs}"
    lines.append(f"Command: `{command} --seeds {a.seeds} --variants {','.join(a.variants)!r}`")
    text = "\n".join(lines) + "\n"
    print(text)
    if a.out:
        write_text(a.out.with_suffix(".md"), "# Training throughput\n\n" + text)
        write_json(
            a.out.with_suffix(".json"), {"environment": machine, "command": command, "rates": rates, "losses": losses}
        )
        if losses["reference"]:
            plot(losses, a.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
