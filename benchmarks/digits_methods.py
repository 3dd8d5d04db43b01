"""Does SmoothMix certify more than Gaussian training on the embedded digits, at equal budgets? Several seeds.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/digits_methods.py --seeds 5 --out benchmarks/results/digits_methods

Both methods take the demo's recipe: the same epochs, batches, noise draws and schedule. Each model is exported through
the parity gate and certified on ONNX Runtime for all 360 test images. Seeds pair the runs; the sign test is exact.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from scipy import stats

import smoothmix_deploy as smx
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.files import write_json, write_text

METHODS = ("smoothmix", "gaussian")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    acr: dict[str, list[float]] = {method: [] for method in METHODS}
    accuracy: dict[str, list[float]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for method in METHODS:
                work = Path(folder) / f"{method}-{seed}"
                smx.train(recipe=f"{method}-digits-0.25", seed=seed, device="cpu", out=work / "run")
                smx.export(work / "run", out=work / "export")
                result = smx.certify(work / "export", engine="ort", data="digits", n=arguments.n, out=work / "c.jsonl")
                acr[method].append(result.summary.acr)
                accuracy[method].append(result.summary.accuracy)
                print(
                    f"seed {seed} {method}: ACR {acr[method][-1]:.3f}, accuracy {accuracy[method][-1]:.3f}", flush=True
                )
    difference = np.array(acr["smoothmix"]) - np.array(acr["gaussian"])
    wins = int((difference > 0).sum())
    p = stats.binomtest(wins, len(difference), 0.5, alternative="greater").pvalue
    machine = environment()
    command = f"OMP_WAIT_POLICY=PASSIVE python benchmarks/digits_methods.py --seeds {arguments.seeds} --n {arguments.n}"
    lines = [
        "# SmoothMix against Gaussian training on digits, sigma 0.25",
        "",
        "| method | ACR | accuracy |",
        "|---|---|---|",
    ]
    for method in METHODS:
        values = ", ".join(f"{v:.3f}" for v in acr[method])
        lines.append(f"| {method} | {np.mean(acr[method]):.3f} ({values}) | {np.mean(accuracy[method]):.3f} |")
    lines += [
        "",
        f"SmoothMix has the larger ACR for {wins} of {len(difference)} seeds (sign test p = {p:.3f}), by "
        f"{difference.mean():.3f} on average (smallest {difference.min():.3f}).",
        f"360 test images, n = {arguments.n:,}, alpha = 0.001, ONNX Runtime.",
        "",
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}.",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".",
        f"Command: `{command}`",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        write_text(arguments.out.with_suffix(".md"), text)
        record = {"environment": machine, "command": command, "acr": acr, "accuracy": accuracy}
        write_json(arguments.out.with_suffix(".json"), record)


if __name__ == "__main__":
    main()
