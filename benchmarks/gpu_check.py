"""All evidence that needs a GPU, in one command and in the minutes that are given; degrades to what is installed.

    python benchmarks/gpu_check.py --minutes 10 --out benchmarks/results/gpu_check

In this order, each kept as soon as it is there: what this machine has (`smx doctor`); the tests marked gpu; then
`deployment_study` on the GPU: exports through the parity gate, self-tests, throughput against the raw engine, against
PyTorch eager and against the reference's loop, for LeNet, ResNet-20, ResNet-110 and ResNet-50; and the share of the
GPU's roofline: floating-point operations of the network times its rate, over the rate of a large matrix product in the
same type, measured here. Without a GPU it runs the same on the CPU and says so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from deployment_study import Study, make_run, options, page, short, study_network
from torch.utils.flop_counter import FlopCounterMode

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.certification.self_test import self_test
from smoothmix_deploy.data import InMemorySet
from smoothmix_deploy.engines import available, candidates, open_engine
from smoothmix_deploy.errors import SmxError
from smoothmix_deploy.models.run_folder import load_model, read_config

TITLE = "GPU check"
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run_gpu_tests(seconds: float) -> str:
    """The last line of `pytest -m gpu`."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "--tb=short", "--show-capture=no"]
    try:
        found = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=max(30.0, seconds), check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"
    except OSError as error:
        return f"could not be run ({error})"
    failures = [line for line in found.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED", "E  "))]
    tail = (found.stdout.strip().splitlines() or found.stderr.strip().splitlines() or ["no output"])[-1]
    return "; ".join([re.sub(r"\s+", " ", tail), *failures[:20]])


def peak_flops(kind: torch.dtype) -> float:
    """Of a 8192 x 8192 matrix product in this type on the GPU, TF32 off: what this device can do."""
    size, runs = 8192, 0
    torch.backends.cuda.matmul.allow_tf32 = False
    a = torch.randn(size, size, device="cuda").to(kind)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.5:
        a @ a
        runs += 1
        torch.cuda.synchronize()
    return 2 * size**3 * runs / (time.perf_counter() - begin)


def flops_of(run: Path) -> float:
    """Of one image."""
    config = read_config(run)
    model = load_model(run, config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *config.input_shape))
    return float(counter.get_total_flops())


def roofline(study: Study, flops: dict[str, float]) -> dict[str, Any]:
    """Peak by precision; adds `roofline` to the rows whose type was measured."""
    peaks = {name: peak_flops(kind) for name, kind in _TYPES.items()}
    for row in study.rows:
        if row["precision"] in peaks and row["network"] in flops:
            row["roofline"] = row["raw"] * flops[row["network"]] / peaks[row["precision"]]
    best: dict[str, float] = {}
    for row in study.rows:
        if "roofline" in row:
            key = f"{row['network']} {row['engine']} {row['precision']}"
            best[key] = max(best.get(key, 0.0), row["roofline"])
    shown = ", ".join(f"{name} {value / 1e12:.1f}" for name, value in peaks.items())
    return {
        "matrix product, TFLOP/s": shown,
        "share of it that the raw engine reaches": ", ".join(f"{name} {value:.1%}" for name, value in best.items()),
    }


def self_tests(run: Path, device: str) -> str:
    """Every engine here on the artefacts it takes: is it a function of its rows?"""
    rng = np.random.default_rng(0)
    channels, height, width = read_config(run).input_shape
    images = InMemorySet(
        "random", "test", rng.random((16, height, width, channels), dtype=np.float32), np.zeros(16, int)
    )
    found = []
    for folder in sorted(path for path in run.parent.iterdir() if path.is_dir()):
        artefact = open_artefact(folder)
        for name in candidates(artefact, device):
            if available(name)[0] is None:
                continue
            try:
                engine = open_engine(artefact, name, device=device, batch_size=128)
                seen = self_test(engine, images, range(16), sigma=0.25, key="0" * 32)
                bits = "bitwise" if seen.bitwise_row_invariant else "votes only"
                found.append(f"{folder.name} on {name}: passed ({bits})")
            except SmxError as error:
                found.append(f"{folder.name} on {name}: {short(error, run.parent)[:160]}")
    return "; ".join(found)


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(minutes=9.0, seconds=1.5, batch_sizes="256,1024", device="auto")
    arguments = parser.parse_args()
    command = f"python benchmarks/gpu_check.py --minutes {arguments.minutes:g} --networks {arguments.networks}"
    study = Study(arguments.out, time.monotonic() + 60 * arguments.minutes, command)
    doctor = smx.doctor()
    for engine in doctor.engines:
        study.more[f"engine {engine.name}"] = engine.version or f"missing ({engine.reason})"
    study.more["GPUs"] = ", ".join(doctor.gpus) or f"none ({doctor.gpu_reason}): the figures below are the CPU's"
    study.more["pytest -m gpu"] = run_gpu_tests(60 * arguments.minutes / 3)
    study.save(TITLE)
    flops: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for arch in arguments.networks.split(","):
            if study.late:
                study.skipped[arch] = "no time left"
                continue
            flops[arch] = flops_of(make_run(arch, Path(folder) / "flops" / arch))
            study_network(
                study, arch, Path(folder), precisions=arguments.precisions.split(","),
                batch_sizes=[int(size) for size in arguments.batch_sizes.split(",")], seconds=arguments.seconds,
                device=arguments.device,
            )  # fmt: skip
            study.more[f"self-tests, {arch}"] = self_tests(Path(folder) / arch / "run", arguments.device)
            study.save(TITLE)
        if torch.cuda.is_available():
            study.more.update(roofline(study, flops))
    study.save(TITLE)
    print(page(study, TITLE))


if __name__ == "__main__":
    main()
