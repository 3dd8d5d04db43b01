"""What do the training methods certify on real data at equal short budgets? Their recipes, cut to a few epochs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/training_methods.py mnist --data-root DATA --work WORK --out OUT

Each method is trained by its recipe (hyper-parameters of its paper), for the same few epochs under one one-cycle schedule,
exported through the parity gate and certified with the fixed rule on the engine of the study. WORK keeps run folders, exports and
certificates: a run that was stopped goes on where it was, and what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import smoothmix_deploy as smx
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.certificates import read_certificates
from smoothmix_deploy.data.load import public_name
from smoothmix_deploy.files import write_json, write_text


@dataclass(frozen=True)
class Study:
    """One data set: what is trained, and what is certified."""

    data: str
    arch: str
    runs: dict[str, tuple[str, dict[str, Any]]]
    """Name in the table -> (recipe, what differs from it beside `training`)."""
    training: dict[str, Any]
    export: dict[str, Any]
    certification: dict[str, Any]
    radii: list[float] = field(default_factory=list)


STUDIES = {
    "mnist": Study(
        "mnist",
        "lenet",
        {
            "SmoothMix": ("smoothmix-mnist-0.50", {}),
            "SmoothMix, one-step adversary": ("smoothmix-mnist-0.50-osa", {}),
            "Gaussian": ("gaussian-mnist-0.50", {}),
            "Gaussian, m = 4": ("gaussian-mnist-0.50", {"m": 4}),
            "Consistency": ("consistency-mnist-0.50", {}),
            "SmoothAdv": ("smoothadv-mnist-0.50", {}),
        },
        {"schedule": "one-cycle", "lr": 0.02, "warmup_epochs": 2, "precision": "bf16"},
        {"format": "openvino", "precision": "bf16"},
        {"n": 100_000, "skip": 100, "engine": "openvino"},
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
    ),
    "cifar10": Study(
        "cifar10",
        "cifar-resnet20",
        {
            "SmoothMix": ("smoothmix-cifar10-0.25", {}),
            "Gaussian": ("gaussian-cifar10-0.25", {}),
            "Gaussian, m = 2": ("gaussian-cifar10-0.25", {"m": 2}),
            "Consistency": ("consistency-cifar10-0.25", {}),
            "SmoothAdv": ("smoothadv-cifar10-0.25", {}),
        },
        {"schedule": "one-cycle", "lr": 0.1, "warmup_epochs": 1, "precision": "bf16"},
        {"format": "onnx", "precision": "fp32"},
        {"n": 1_000, "stop": 1000, "engine": "ort"},
        [0.0, 0.25, 0.5],
    ),
}


def run(study: Study, name: str, a: argparse.Namespace) -> dict[str, Any]:
    """Train, export and certify one method, as far as that is not done already; its row."""
    recipe, changes = study.runs[name]
    work = a.work / name.lower().replace(" ", "-").replace(",", "").replace("=", "")
    folder, exported, certificates = work / "run", work / "export", work / "certs.jsonl"
    train_data = {"data": a.train_data or study.data, "data_root": a.data_root}
    test_data = {"data": a.test_data or study.data, "data_root": a.data_root}
    if not (folder / "config.json").exists() or len(metrics(folder)) < a.epochs:
        smx.train(
            recipe=recipe, **train_data, arch=study.arch, epochs=a.epochs, seed=0, device=a.device, out=folder,
            resume=folder.exists(), **{**study.training, **changes},
        )  # fmt: skip
    if not (exported / "manifest.json").exists():
        smx.export(folder, out=exported, **study.export)
    smx.certify(
        exported, **test_data, out=certificates, resume=certificates.exists(), seed=1,
        **study.certification,
    )  # fmt: skip
    file = read_certificates(certificates)
    lines = metrics(folder)
    row = smx.report(certificates, radii=study.radii).record()["files"][0]
    row["file"] = str(certificates.relative_to(a.work))
    row["manifest_n"], row["sigma"] = file.manifest.n, file.manifest.sigma
    row |= {"name": name, "recipe": recipe, "changes": changes, "noisy_accuracy": lines[-1]["noisy_accuracy"]}
    row["training_seconds"] = sum(line["seconds"] for line in lines)
    print(f"{name}: ACR {row['acr']:.3f}", file=sys.stderr, flush=True)
    return row


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, as far as there are any."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def text_of(study: Study, rows: list[dict[str, Any]], a: argparse.Namespace) -> list[str]:
    """The page."""
    first = rows[0]
    radii = [r for r in first["certified"] if float(r) > 0]
    lines = [f"# Training methods on {study.data}: {study.arch}, sigma {first['sigma']:g}, {a.epochs} epochs", ""]
    lines += [
        "| method | ACR | accuracy | abstained | "
        + " | ".join(f"r = {r}" for r in radii)
        + " | training, min (shared machine) |"
    ]
    lines += ["|---|" + "---:|" * (len(radii) + 4)]
    for row in rows:
        cells = " | ".join(f"{row['certified'][r]:.3f}" for r in radii)
        lines.append(
            f"| {row['name']} | {row['acr']:.3f} | {row['accuracy']:.3f} | {row['abstained']:.3f} | {cells} "
            f"| {row['training_seconds'] / 60:.1f} |"
        )
    settings = ", ".join(f"{k} {v}" for k, v in study.training.items())
    images = ", ".join(f"{k} {v}" for k, v in study.certification.items() if k not in ("n", "engine"))
    lines += [
        "",
        f"A short budget, not the paper's (90 epochs for MNIST, 150 for CIFAR-10): {a.epochs} epochs each, {settings}; the "
        f"rest by the recipes. One seed. Certified: {first['images']:,} test images ({images}), n = {first['manifest_n']:,},"
        f" alpha = 0.001, rule fixed; {study.export['format']} in {study.export['precision']} on {study.certification['engine']}.",
    ]
    return lines


def plot(study: Study, a: argparse.Namespace, names: list[str], path: Path) -> None:
    """Certified accuracy over the radius, a curve a method."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in names:
        work = a.work / name.lower().replace(" ", "-").replace(",", "").replace("=", "")
        certificates = read_certificates(work / "certs.jsonl").certificates
        proved = np.sort([c.radius if c.correct else -1.0 for c in certificates])
        radii = np.linspace(0, max(proved.max(), 0.1) * 1.02, 400)
        axes.plot(radii, 1 - np.searchsorted(proved, radii) / len(proved), lw=1.4, label=name)
    axes.set(xlabel="L2 radius", ylabel="certified accuracy", ylim=(0, 1), xlim=(0, None))
    axes.set_title(f"{study.data}, {study.arch}, {a.epochs} epochs", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--train-data", help="another --data for training, e.g. npz:cifar10-train.npz")
    parser.add_argument("--test-data")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--methods", help="names in the table, with ; between; default: all")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="writes OUT.json, OUT.md and OUT.png")
    a = parser.parse_args()
    study = STUDIES[a.study]
    names = a.methods.split(";") if a.methods else list(study.runs)
    rows = [run(study, name, a) for name in names]
    machine = environment()
    lines = text_of(study, rows, a)
    lines += ["", f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}, shared."]
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".")
    command = f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/training_methods.py {a.study}"
    for option, spec in (("--train-data", a.train_data), ("--test-data", a.test_data)):
        command += f" {option} {public_name(spec)}" if spec else ""
    command += " --data-root DATA" if a.data_root else ""
    command += f" --methods '{a.methods}'" if a.methods else ""
    command += f" --epochs {a.epochs} --work WORK"
    lines.append(f"Command: `{command}`")
    text = "\n".join(lines) + "\n"
    print(text)
    if a.out:
        write_text(a.out.with_suffix(".md"), text)
        write_json(a.out.with_suffix(".json"), {"environment": machine, "command": command, "results": rows})
        plot(study, a, names, a.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
