"""Two gloo processes of one thread each against one process of one thread: images/s, and whether the losses agree.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/data_parallel.py --out benchmarks/results/data_parallel

SmoothMix on random images of MNIST's and CIFAR-10's shape (speed does not depend on them), `smx train` under torchrun
with `--nproc-per-node 1` and 2, alternating. Images/s are those of the second epoch in metrics.jsonl: start-up,
evaluation and saving are not in them. Ratios are taken within a round, and so are the differences of the first epoch's
mean losses (later ones drift apart, as rounding errors grow from step to step). ResNets have BatchNorm, which on the CPU
each process computes over its own images, so their losses are not the same by design; LeNet's are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.files import write_json, write_text

# Network: shape of the images, how many, images a batch.
NETWORKS = {"lenet": ((28, 28, 1), 4096, 256), "cifar-resnet20": ((32, 32, 3), 512, 128)}
EPOCHS = 2


def train(arch: str, data: Path, processes: int, batch_size: int, out: Path) -> list[dict]:
    """The lines of metrics.jsonl of a run on so many processes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "-m", "smx_cli", "train", "--data", f"npz:{data}", "--arch", arch, "--device", "cpu", "--sigma", "0.5",
        "--epochs", str(EPOCHS), "--batch-size", str(batch_size), "--num-noise", "2", "--attack-steps", "4",
        "--eta", "5", "--lr", "0.01", "--schedule", "step", "--out", str(out),
    ]  # fmt: skip
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def measure(arch: str, rounds: int, work: Path) -> dict:
    """All figures of one network."""
    shape, count, batch_size = NETWORKS[arch]
    rng = np.random.default_rng(0)
    data = work / f"{arch}.npz"
    np.savez(data, x=rng.integers(0, 256, (count, *shape), dtype=np.uint8), y=np.arange(count) % 10)
    found = []
    for number in range(rounds):
        lines = {n: train(arch, data, n, batch_size, work / f"{arch}-{number}-{n}") for n in (1, 2)}
        one, two = (lines[n][-1]["images_per_second"] for n in (1, 2))
        apart = abs(lines[1][0]["loss"] - lines[2][0]["loss"])
        found.append({"one": one, "two": two, "loss_difference": apart})
        print(
            f"{arch}: one {one:,.0f}  two {two:,.0f} ({two / one:.2f})  losses differ by {apart:.1e}", file=sys.stderr
        )
    return {
        "rounds": found,
        "one": float(np.median([r["one"] for r in found])),
        "two": float(np.median([r["two"] for r in found])),
        "ratio": float(np.median([r["two"] / r["one"] for r in found])),
        "largest_loss_difference": max(r["loss_difference"] for r in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {arch: measure(arch, arguments.rounds, Path(folder)) for arch in arguments.networks.split(",")}
    lines = [
        "| network | one process | two processes | two / one | largest difference of the first epoch's mean loss |",
        "|---|---:|---:|---:|---:|",
    ]
    for arch, r in results.items():
        lines.append(
            f"| {arch} | {r['one']:,.0f} | {r['two']:,.0f} | {r['ratio']:.2f} | {r['largest_loss_difference']:.1e} |"
        )
    lines += ["", f"Images/s, SmoothMix with m = 2 and T = 4, a thread a process, gloo; medians of {arguments.rounds}"]
    lines[-1] += " rounds, ratios within a round. ResNets: BatchNorm of each process's own images, so losses differ."
    machine = environment()
    lines += ["", f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}."]
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".")
    command = f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/data_parallel.py "
    command += f"--rounds {arguments.rounds} --networks {arguments.networks}"
    lines.append(f"Command: `{command}`")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        write_text(arguments.out.with_suffix(".md"), "# Data-parallel training on two cores\n\n" + text)
        write_json(arguments.out.with_suffix(".json"), {"environment": machine, "command": command, "results": results})


if __name__ == "__main__":
    main()
