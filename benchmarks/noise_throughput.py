"""What sound noise costs: grid against float noise, alone and end to end on LeNet with ONNX Runtime, in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/noise_throughput.py --out benchmarks/results/noise_throughput

- alone: noisy images of 1 x 28 x 28 and 3 x 32 x 32 into a buffer of 512 rows, on one thread, values a second;
- end to end: `certification.sampler.run` on an exported, untrained LeNet (speed does not depend on weights), 28 x 28,
  default batch, samples a second.

Rounds alternate between the two noises, and ratios are taken within a round: the machine's speed drifts, ratios less.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.certification.sampler import run
from smoothmix_deploy.certification.scheduler import Scheduler
from smoothmix_deploy.data import InMemorySet
from smoothmix_deploy.engines import open_engine
from smoothmix_deploy.exporting.onnx_file import write_onnx
from smoothmix_deploy.files import write_json, write_text
from smoothmix_deploy.models.build import build_model
from smoothmix_deploy.noise.grid import grid_table
from smoothmix_deploy.noise.source import make_noise
from smoothmix_deploy.rules.fixed import FixedRule

KEY = "0" * 32
SHAPES = {"1 x 28 x 28": (1, 28, 28), "3 x 32 x 32": (3, 32, 32)}
SIGMAS = (0.12, 0.25, 0.5, 1.0)
NOISES = ("gaussian", "grid")
N, N0, IMAGES = 5_000, 100, 4


def rate(function: Callable[[], None], amount: int, seconds: float) -> float:
    """Of `amount` a call, how much a second, over at least `seconds`."""
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        function()
        calls += 1
    return calls * amount / (time.perf_counter() - begin)


def alone(shape: tuple[int, int, int], sigma: float, rounds: int, seconds: float) -> dict:
    """Values/s of each noise, medians, and the ratio."""
    out = np.empty((512, int(np.prod(shape))), np.float32)
    image = np.full(out.shape[1], 128 / 255, np.float32)
    sources = {noise: make_noise(noise, KEY, sigma, shape) for noise in NOISES}
    batches = iter(range(10**9))  # other samples in each call: processors learn the branches of what they see again

    def fill(noise: str) -> None:
        sources[noise].fill(out, image, 1, 0, 512 * next(batches))

    found = [{noise: rate(partial(fill, noise), out.size, seconds) for noise in NOISES} for _ in range(rounds)]
    return summary(found)


def end_to_end(rounds: int, seconds: float, work: Path) -> dict:
    """Samples/s of the certifier with each noise at sigma 0.5, medians, and the ratio."""
    torch.manual_seed(0)
    shape = SHAPES["1 x 28 x 28"]
    write_onnx(build_model("lenet", num_classes=10, input_shape=shape, mean_sd=None).eval(), shape, work / "m.onnx", {})
    engine = open_engine(open_artefact(work / "m.onnx"), "ort")
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 28, 28, 1), np.uint8)
    images = InMemorySet("random", "test", pixels, np.arange(IMAGES) % 10)

    def certify(noise: str) -> None:
        scheduler = Scheduler(range(IMAGES), FixedRule(0.5, N, 0.001), N0, 10)
        run(
            engine, images, scheduler, sigma=0.5, key=KEY, noise=noise,
            after_batch=lambda _: scheduler.release(lambda job: None),
        )  # fmt: skip

    found = []
    for i in range(rounds):
        order = NOISES if i % 2 == 0 else NOISES[::-1]
        found.append({noise: rate(partial(certify, noise), IMAGES * (N + N0), seconds) for noise in order})
        print(f"end to end: {found[-1]}", file=sys.stderr)
    return {**summary(found), "batch_size": engine.info.batch_size}


def summary(rounds: list[dict[str, float]]) -> dict:
    """Medians; the ratio is that of rounds."""
    ratios = [r["grid"] / r["gaussian"] for r in rounds]
    medians = {noise: float(np.median([r[noise] for r in rounds])) for noise in NOISES}
    return {**medians, "grid_over_gaussian": float(np.median(ratios)), "ratios": ratios, "rounds": rounds}


def preparation(sigma: float) -> float:
    """Seconds for the thresholds and tables of one sigma, once a process."""
    begin = time.perf_counter()
    grid_table(sigma)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    prepared = {sigma: preparation(sigma) for sigma in SIGMAS}
    drawn = {
        (name, sigma): alone(shape, sigma, arguments.rounds, arguments.seconds / 10)
        for name, shape in SHAPES.items()
        for sigma in SIGMAS
    }
    with tempfile.TemporaryDirectory() as folder:
        whole = end_to_end(arguments.rounds, arguments.seconds, Path(folder))
    lines = ["| | float noise | grid noise | grid / float |", "|---|---:|---:|---:|"]
    for (name, sigma), r in drawn.items():
        lines.append(
            f"| alone, {name}, sigma {sigma} | {r['gaussian'] / 1e6:,.0f} M values/s | {r['grid'] / 1e6:,.0f} M values/s "
            f"| {r['grid_over_gaussian']:.2f} |"
        )
    lines.append(
        f"| LeNet on ONNX Runtime, end to end, sigma 0.5, batch {whole['batch_size']} | {whole['gaussian']:,.0f} samples/s "
        f"| {whole['grid']:,.0f} samples/s | {whole['grid_over_gaussian']:.2f} |"
    )
    ratios = whole["ratios"]
    lines += ["", f"Medians of {arguments.rounds} rounds, ratios within a round "]
    lines[-1] += f"(end to end from {min(ratios):.2f} to {max(ratios):.2f}). Noise alone: one thread."
    lines.append(
        "Thresholds and tables, once a process: "
        + ", ".join(f"{1000 * s:.0f} ms at sigma {sigma}" for sigma, s in prepared.items())
        + "."
    )
    machine = environment()
    lines += ["", f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}."]
    lines.append(f"Other processes' load at the start (1 minute): {load:.1f}.")
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".")
    command = f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/noise_throughput.py "
    command += f"--rounds {arguments.rounds} --seconds {arguments.seconds:g}"
    lines.append(f"Command: `{command}`")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        write_text(arguments.out.with_suffix(".md"), "# Noise throughput\n\n" + text)
        results = {
            "alone": [{"shape": name, "sigma": sigma, **r} for (name, sigma), r in drawn.items()],
            "end_to_end": whole,
            "preparation_seconds": {str(sigma): s for sigma, s in prepared.items()},
        }
        write_json(
            arguments.out.with_suffix(".json"),
            {"environment": machine, "command": command, "load": load, "results": results},
        )


if __name__ == "__main__":
    main()
