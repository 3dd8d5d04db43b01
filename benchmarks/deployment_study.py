"""Engines x precisions x batch sizes x networks, against the reference's loop, on whatever this machine has.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/deployment_study.py --out benchmarks/results/deployment_study

Untrained weights (speed does not depend on them). Each network is exported to every format and precision that can be
built here, through the parity gate; each artefact runs on every engine here that takes it. For each batch size: the raw
engine's rate and the certifier's own loop, alternating; the reference's loop (PyTorch eager, channels last, which the
public scripts are not, batches of 1,000, noise by torch.randn_like, votes counted one by one) in the same run and on the
same device. What cannot be built or run is listed with its reason. With --minutes the study stops in time and keeps what
it has; the file is written after every configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.benchmarking.run import end_to_end_rate, raw_call, raw_rate
from smoothmix_deploy.benchmarking.timing import time_calls
from smoothmix_deploy.engines import available, candidates, open_engine
from smoothmix_deploy.errors import SmxError
from smoothmix_deploy.files import write_json, write_text
from smoothmix_deploy.models.build import build_model
from smoothmix_deploy.models.run_folder import RunConfig, save_weights, write_config

NETWORKS = {
    "lenet": (1, 28, 28), "cifar-resnet20": (3, 32, 32), "cifar-resnet110": (3, 32, 32), "resnet50": (3, 224, 224),
}  # fmt: skip
SIGMA = 0.5


@dataclass
class Study:
    """What was found so far. Written after each step."""

    out: Path | None
    deadline: float
    command: str
    environment: dict[str, Any] = field(default_factory=environment)
    exports: list[dict[str, Any]] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)
    """Network -> samples/s of the reference's loop."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def late(self) -> bool:
        """Whether it is time to stop."""
        return time.monotonic() > self.deadline

    def save(self, title: str) -> None:
        """Write OUT.json and OUT.md."""
        if self.out is not None:
            record = {k: v for k, v in asdict(self).items() if k not in ("out", "deadline")}
            write_json(self.out.with_suffix(".json"), record)
            write_text(self.out.with_suffix(".md"), page(self, title))


def make_run(arch: str, folder: Path) -> Path:
    """A run folder of an untrained network whose BatchNorm statistics are not trivial."""
    torch.manual_seed(0)
    shape = NETWORKS[arch]
    classes = 1000 if arch == "resnet50" else 10
    model = build_model(arch, num_classes=classes, input_shape=shape, mean_sd=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    config = RunConfig(
        arch=arch, num_classes=classes, class_names=None, input_shape=shape, mean_sd=None, sigma=SIGMA, method="none",
        recipe=None, seed=0, data={"name": None, "root": None}, versions={},
    )  # fmt: skip
    folder.mkdir(parents=True)
    save_weights(folder, model)
    write_config(folder, config)
    return folder


def reference_rate(run: Path, seconds: float, device: str) -> float:
    """Samples/s of the loop of the public implementations, after the published algorithm."""
    engine = open_engine(open_artefact(run), "torch", device=device, batch_size=1)
    shape, there = engine.info.input_shape, engine.device
    model, x = engine._model, torch.rand(shape, device=there)
    size, drawn = (1000 if shape[1] < 100 else 400), 0
    counts = np.zeros(engine.info.num_classes, dtype=int)

    def batch() -> None:
        images = x.repeat((size, 1, 1, 1))
        noise = torch.randn_like(images, device=there) * SIGMA
        for vote in model(images + noise).argmax(1).cpu().numpy():
            counts[vote] += 1

    with torch.no_grad():
        batch()
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds or drawn == 0:
            batch()
            drawn += size
        return drawn / (time.perf_counter() - begin)


def short(error: Exception, folder: Path) -> str:
    """Its message, without the name of a folder that will be gone."""
    return str(error).replace(f"{folder}/", "")


def export_all(study: Study, arch: str, run: Path, precisions: list[str], max_batch: int) -> dict[str, Path]:
    """ "format precision" -> export folder, for all that can be built and pass the gate."""
    found = {}
    for format in ("trt", "onnx", "openvino"):
        for precision in precisions:
            if (
                study.late
                or (precision == "fp8" and format != "trt")
                or (format == "openvino" and torch.cuda.is_available())
            ):
                continue
            folder, begin = run.parent / f"{arch}-{format}-{precision}", time.monotonic()
            record: dict[str, Any] = {"network": arch, "format": format, "precision": precision}
            try:
                # Untrained networks waver: the gate's verdict is recorded, its limits are not what is studied here.
                result = smx.export(
                    run, out=folder, format=format, precision=precision, seed=0, max_batch=max_batch,
                    parity_samples=1024, max_disagreement=0.5, max_radius_lost=0.9, sigma=0.25,
                )  # fmt: skip
                record |= {"passed": result.pending is None, "pending": result.pending}
                if result.parity is not None:
                    record |= {"disagreement": result.parity.rate, "upper_bound": result.parity.upper_bound,
                               "logit_difference": result.parity.max_logit_difference}  # fmt: skip
                if result.pending is None:
                    found[f"{format} {precision}"] = folder
            except SmxError as error:
                record |= {"passed": False, "error": short(error, run.parent)}
            study.exports.append({**record, "seconds": round(time.monotonic() - begin, 1)})
    return found


def measure(study: Study, arch: str, artefact: Path, name: str, size: int, seconds: float, device: str) -> None:
    """One row: raw and end-to-end rates, in turn, three times."""
    opened = open_artefact(artefact)
    engine_file = opened.file.name
    engine = open_engine(opened, name, batch_size=size, device=device)
    single = open_engine(opened, name, batch_size=size, device=device, low_latency=True)
    first = time_calls(raw_call(single), seconds / 3)
    rough = raw_rate(engine, seconds / 3)
    pairs = []
    for _ in range(3):
        raw = raw_rate(engine, seconds / 3)
        pairs.append((raw, end_to_end_rate(engine, rough, seconds / 3)))
    raw, end = (float(np.median([pair[i] for pair in pairs])) for i in (0, 1))
    study.rows.append({
        "network": arch, "artefact": artefact.name, "file": engine_file, "engine": name,
        "precision": engine.info.precision, "batch_size": size,
        "raw": raw, "end_to_end": end, "share": float(np.median([e / r for r, e in pairs])),
        "p50_ms": first.percentile(50), "p99_ms": first.percentile(99), "rounds": pairs,
        "times_reference": end / study.references[arch] if arch in study.references else None,
        "device": engine.info.device, "version": engine.info.version,
    })  # fmt: skip


def study_network(
    study: Study, arch: str, work: Path, *, precisions: list[str], batch_sizes: list[int], seconds: float, device: str
) -> None:
    """All of one network."""
    run = make_run(arch, work / arch / "run")
    study.references[arch] = reference_rate(run, seconds, device)
    sizes = [size for size in batch_sizes if NETWORKS[arch][1] < 100 or size <= 256]
    artefacts = {"run fp32": run, **export_all(study, arch, run, precisions, max(sizes))}
    for artefact in artefacts.values():
        for name in candidates(open_artefact(artefact), device):
            version, reason = available(name)
            if version is None:
                study.skipped[name] = reason
                continue
            for size in sizes:
                if study.late:
                    study.skipped["time"] = f"up before {arch}, {name}, batch {size}"
                    return
                print(f"{arch}: {artefact.name} on {name}, batch {size}", file=sys.stderr)
                try:
                    measure(study, arch, artefact, name, size, seconds, device)
                except SmxError as error:
                    study.skipped[f"{name}: {artefact.name}"] = short(error, run.parent)
                    break
            study.save("Deployment study")


def page(study: Study, title: str) -> str:
    """Markdown: the best batch of each configuration, what the gate saw, what was left out and why."""
    lines = [f"# {title}", "", "Samples/s at each configuration's best batch size; share: end to end over raw, the median of",
             "ratios within a round; last column: end to end over the reference's loop.", "",
             "| network | file | engine | precision | batch | raw | end to end | share | p50 ms | times the reference |",
             "|---|---|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    keys = dict.fromkeys((r["network"], r["artefact"], r["engine"]) for r in study.rows)
    for key in keys:
        best = max(
            (r for r in study.rows if (r["network"], r["artefact"], r["engine"]) == key), key=lambda r: r["end_to_end"]
        )
        times = "" if best["times_reference"] is None else f"{best['times_reference']:.1f}"
        lines.append(
            f"| {best['network']} | {best['file']} | {best['engine']} | {best['precision']} | {best['batch_size']} | {best['raw']:,.0f} "
            f"| {best['end_to_end']:,.0f} | {best['share']:.2f} | {best['p50_ms']:.2f} | {times} |"
        )
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in study.references.items())
    lines += [
        "",
        f"Reference loop, samples/s: {rates}.",
        "",
        "| network | format | precision | gate | votes that differ | seconds |",
        "|---|---|---|---|---:|---:|",
    ]
    for e in study.exports:
        verdict = (
            "passed" if e["passed"] else f"pending: {e['pending']}" if e.get("pending") else e.get("error", "")[:160]
        )
        rate = f"{e['disagreement']:.2%}" if "disagreement" in e else ""
        lines.append(f"| {e['network']} | {e['format']} | {e['precision']} | {verdict} | {rate} | {e['seconds']} |")
    lines += ["", *(f"- {name}: {value}" for name, value in study.more.items())]
    lines += [f"- not measured, {name}: {reason}" for name, reason in study.skipped.items()]
    machine = study.environment
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    lines += ["", f"Machine: {machine['processor']} ({', '.join(machine['instructions'])}), {machine['cores']} cores, "
              f"GPU {machine['gpu'] or 'none'}, {machine['system']}.", f"Versions: {versions}.", f"Command: `{study.command}`"]  # fmt: skip
    return "\n".join(lines) + "\n"


def options(description: str | None) -> argparse.ArgumentParser:
    """What this and `gpu_check` have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--precisions", default="fp32,fp16,bf16,int8,fp8")
    parser.add_argument("--batch-sizes", default="32,128,256,512,1024")
    parser.add_argument("--seconds", type=float, default=3.0, help="a configuration and batch size")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop in time and keep what is there")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    return parser


def main() -> None:
    arguments = options(__doc__).parse_args()
    command = f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/deployment_study.py " + " ".join(
        f"--{name.replace('_', '-')} {value:g}" if isinstance(value, float) else f"--{name.replace('_', '-')} {value}"
        for name, value in vars(arguments).items()
        if name != "out"
    )
    study = Study(arguments.out, time.monotonic() + 60 * arguments.minutes, command)
    with tempfile.TemporaryDirectory() as folder:
        for arch in arguments.networks.split(","):
            if not study.late:
                study_network(
                    study, arch, Path(folder), precisions=arguments.precisions.split(","),
                    batch_sizes=[int(size) for size in arguments.batch_sizes.split(",")], seconds=arguments.seconds,
                    device=arguments.device,
                )  # fmt: skip
    study.save("Deployment study")
    print(page(study, "Deployment study"))


if __name__ == "__main__":
    main()
