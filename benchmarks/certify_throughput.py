"""Samples/s of the certifier, end to end, against the raw engine and against the reference's loop, in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/certify_throughput.py --out benchmarks/results/certify_throughput

For LeNet (28 x 28) and ResNet-20 (32 x 32) with untrained weights (speed does not depend on them):

- raw: an ONNX Runtime session alone, on one prepared batch, at the batch size and thread setting where it is fastest: one
  call at a time on all cores, spinning or not, or one call on each core at a time;
- certify: `certification.sampler.run` on the exported file, noise, votes and counting included, at its default batch;
- reference: the loop of the public implementations (PyTorch in eager mode, one image at a time, batches of 1,000, noise
  by torch.randn_like, votes counted one by one in Python), written here after the published algorithm.

Rounds alternate between the three, and ratios are taken within a round: the machine's speed drifts, ratios less.
Memory: resident size of the process after certifying with n and with 10 n samples.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import onnxruntime
import torch

from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.certification.sampler import run
from smoothmix_deploy.certification.scheduler import Scheduler
from smoothmix_deploy.data import InMemorySet
from smoothmix_deploy.engines import open_engine
from smoothmix_deploy.engines.base import usable_cores
from smoothmix_deploy.exporting.onnx_file import write_onnx
from smoothmix_deploy.files import write_json, write_text
from smoothmix_deploy.models.build import build_model
from smoothmix_deploy.rules.fixed import FixedRule

NETWORKS = {"lenet": (1, 28, 28), "cifar-resnet20": (3, 32, 32)}
SIGMA, N0 = 0.5, 100
THREADS = ("spinning", "no spinning", "a call a core")


def reference_certify(model: torch.nn.Module, x: torch.Tensor, n: int, batch_size: int) -> np.ndarray:
    """Counts of n votes, as the public implementations collect them."""
    counts = np.zeros(10, dtype=int)
    with torch.no_grad():
        for _ in range(ceil(n / batch_size)):
            size = min(batch_size, n)
            n -= size
            batch = x.repeat((size, 1, 1, 1))
            noise = torch.randn_like(batch) * SIGMA
            for vote in model(batch + noise).argmax(1).numpy():
                counts[vote] += 1
    return counts


def certify(engine, images: InMemorySet, n: int, count: int) -> int:
    """Samples drawn for `count` images with n0 + n each."""
    scheduler = Scheduler(range(count), FixedRule(SIGMA, n, 0.001), N0, 10)
    run(engine, images, scheduler, sigma=SIGMA, key="0" * 32, after_batch=lambda _: scheduler.release(lambda job: None))
    return count * (n + N0)


def rate(function, samples_per_call: int, seconds: float) -> float:
    """Samples/s over at least `seconds`."""
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        function()
        calls += 1
    return calls * samples_per_call / (time.perf_counter() - begin)


def prepared(path: Path, shape: tuple[int, int, int], size: int, threads: str):
    """A raw session on one prepared batch: a function that runs it for some seconds and gives samples/s."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(threads != "no spinning")))
    calls = usable_cores() if threads == "a call a core" else 1
    options.intra_op_num_threads = 1 if calls > 1 else 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((size, *shape), dtype=np.float32)
    call = partial(session.run, None, {session.get_inputs()[0].name: x})

    def run_for(seconds: float) -> float:
        with ThreadPoolExecutor(calls) as pool:
            return sum(pool.map(lambda _: rate(call, size, seconds), range(calls)))

    return run_for


def measure(arch: str, shape: tuple[int, int, int], rounds: int, seconds: float, work: Path) -> dict:
    """All figures of one network."""
    torch.manual_seed(0)
    model = build_model(arch, num_classes=10, input_shape=shape, mean_sd=None).eval()
    path = work / f"{arch}.onnx"
    write_onnx(model, shape, path, {})
    artefact = open_artefact(path)
    rng = np.random.default_rng(0)
    images = InMemorySet("random", "test", rng.random((16, *shape[1:], shape[0]), dtype=np.float32), np.arange(16) % 10)
    settings = [(size, threads) for threads in THREADS for size in (32, 64, 128, 256, 512, 1000)]
    sessions = {setting: prepared(path, shape, *setting) for setting in settings}
    tried: dict[tuple[int, str], list[float]] = {setting: [] for setting in settings}
    for _ in range(3):
        for setting, session in sessions.items():
            tried[setting].append(session(0.3))
    medians = {setting: float(np.median(rates)) for setting, rates in tried.items()}
    best, best_threads = max(medians, key=medians.__getitem__)
    raw_session = sessions[best, best_threads]
    engine = open_engine(artefact, "ort")
    x = torch.from_numpy(images.image(0))
    n_reference = 1000 * max(1, round(seconds * medians[best, best_threads] / 4 / 1000))
    n = max(1000, int(medians[best, best_threads] * seconds / 8))  # about 8 images a round
    results = []
    for _ in range(rounds):
        raw = raw_session(seconds)
        ours = rate(lambda: certify(engine, images, n, 8), 8 * (n + N0), seconds)
        reference = rate(lambda: reference_certify(model, x, n_reference, 1000), n_reference, seconds)
        results.append({"raw": raw, "certify": ours, "reference": reference})
        print(
            f"{arch}: raw {raw:,.0f}  certify {ours:,.0f} ({ours / raw:.0%})  reference {reference:,.0f}",
            file=sys.stderr,
        )
    median = {name: float(np.median([r[name] for r in results])) for name in results[0]}
    return {
        "raw_tried": [
            {"batch_size": size, "threads": threads, "samples_per_second": value}
            for (size, threads), value in medians.items()
        ],
        "best_threads": best_threads,
        "best_batch": best,
        "certify_batch": engine.info.batch_size,
        "rounds": results,
        "median": median,
        "certify_over_raw": float(np.median([r["certify"] / r["raw"] for r in results])),
        "certify_over_reference": float(np.median([r["certify"] / r["reference"] for r in results])),
    }


def memory(path: Path, n: int) -> float:
    """Peak resident MB of a process that certifies one image with n samples."""
    code = f"""
import numpy as np
from pathlib import Path
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.certification.sampler import run
from smoothmix_deploy.certification.scheduler import Scheduler
from smoothmix_deploy.data import InMemorySet
from smoothmix_deploy.engines import open_engine
from smoothmix_deploy.engines.base import usable_cores
from smoothmix_deploy.rules.fixed import FixedRule
images = InMemorySet("grey", "test", np.full((1, 28, 28, 1), 0.5, np.float32), np.zeros(1, int))
s = Scheduler([0], FixedRule(0.5, {n}, 0.001), 100, 10)
run(open_engine(open_artefact({str(path)!r}), "ort"), images, s, sigma=0.5, key="0" * 32, after_batch=lambda _: None)
print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])
"""
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        results = {
            name: measure(name, NETWORKS[name], arguments.rounds, arguments.seconds, work)
            for name in arguments.networks.split(",")
        }
        memories = {}
        if "lenet" in results:
            memories = {n: memory(work / "lenet.onnx", n) for n in (10_000, 100_000, 1_000_000)}
    lines = [
        "| network | raw engine | certify, end to end | reference loop | certify / raw | certify / reference |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, r in results.items():
        m = r["median"]
        lines.append(
            f"| {name} | {m['raw']:,.0f} (batch {r['best_batch']}, {r['best_threads']}) | {m['certify']:,.0f} (batch {r['certify_batch']}) "
            f"| {m['reference']:,.0f} | {r['certify_over_raw']:.2f} | {r['certify_over_reference']:.1f} |"
        )
    lines += ["", "Samples/s; medians of " + str(arguments.rounds) + " rounds, ratios within a round."]
    if memories:
        lines.append(
            "Peak memory with LeNet: " + ", ".join(f"n = {n:,}: {mb:.0f} MB" for n, mb in memories.items()) + "."
        )
    machine = environment()
    lines += ["", f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}."]
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".")
    command = f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/certify_throughput.py "
    command += f"--rounds {arguments.rounds} --seconds {arguments.seconds:g} --networks {arguments.networks}"
    lines.append(f"Command: `{command}`")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        write_text(arguments.out.with_suffix(".md"), "# Certification throughput\n\n" + text)
        record = {"environment": machine, "command": command, "results": results, "peak_memory_mb": memories}
        write_json(arguments.out.with_suffix(".json"), record)


if __name__ == "__main__":
    main()
