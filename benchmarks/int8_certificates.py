"""int8 against fp32 on a trained network: certified images/s and ACR, on ONNX Runtime and OpenVINO, in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/int8_certificates.py RUN --data npz:TEST.npz \\
        --out benchmarks/results/int8_certificates

RUN is a run folder (smx train). Both precisions are exported through the parity gate (votes and certified radius on noisy
images of the data set) and certified with `smx certify` on the same images with the same noise. The certification of
fp32 and int8 alternates, a share of the images at a time, and the ratio is the median over the shares: the machine's
speed drifts. Also says what the gate saw, and the raw and end-to-end rates.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

import smoothmix_deploy as smx
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.certificates import Certificate, read_certificates
from smoothmix_deploy.engines import available
from smoothmix_deploy.files import write_json, write_text
from smoothmix_deploy.summary import summarise

ENGINES = ("ort", "openvino")


def certify_shares(exports: dict[str, Path], engine: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """fp32 and int8 in turn, over shares of the images; rates a share, all certificates together."""
    certificates: dict[str, list[Certificate]] = {name: [] for name in exports}
    rates: dict[str, list[float]] = {name: [] for name in exports}
    per_share = arguments.images // arguments.shares
    for share in range(arguments.shares):
        for name, artefact in exports.items():
            start = share * per_share * arguments.skip
            out = work / f"{engine}-{name}-{share}.jsonl"
            result = smx.certify(
                artefact, engine=engine, data=arguments.data, data_root=arguments.data_root, start=start,
                stop=start + per_share * arguments.skip, skip=arguments.skip, n=arguments.n, out=out, seed=0,
            )  # fmt: skip
            rates[name].append(len(range(start, start + per_share * arguments.skip, arguments.skip)) / result.seconds)
            certificates[name] += read_certificates(out).certificates
    ratio = [b / a for a, b in zip(rates["fp32"], rates["int8"], strict=True)]
    found: dict[str, Any] = {
        "engine": engine,
        "version": available(engine)[0],
        "speed": float(np.median(ratio)),
        "speeds": ratio,
    }
    for name, lines in certificates.items():
        summary = summarise(lines)
        found[name] = {"acr": summary.acr, "accuracy": summary.accuracy, "images": summary.images,
                       "images_per_second": float(np.median(rates[name]))}  # fmt: skip
    return found


def page(results: list[dict[str, Any]], exports: dict[str, Any], machine: dict[str, Any], command: str) -> str:
    """Markdown."""
    lines = ["# int8 against fp32, certified", "", "| engine | fp32, images/s | int8, images/s | speed-up | ACR fp32 | ACR int8 | accuracy fp32 | int8 |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for r in results:
        a, b = r["fp32"], r["int8"]
        lines.append(
            f"| {r['engine']} {r['version']} | {a['images_per_second']:.3f} | {b['images_per_second']:.3f} | {r['speed']:.2f} "
            f"| {a['acr']:.4f} | {b['acr']:.4f} | {a['accuracy']:.3f} | {b['accuracy']:.3f} |"
        )
    lines += ["", *(f"Parity gate, {name}: {summary}." for name, summary in exports.items())]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    lines += ["", f"Machine: {machine['processor']} ({', '.join(machine['instructions'])}), {machine['cores']} cores, {machine['system']}.",
              f"Versions: {versions}.", f"Command: `{command}`"]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--skip", type=int, default=10)
    parser.add_argument("--shares", type=int, default=5)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--max-disagreement", type=float, default=0.03)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results, gates = [], {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        exports = {}
        for precision in ("fp32", "int8"):
            exported = smx.export(
                arguments.run, out=work / precision, precision=precision, max_disagreement=arguments.max_disagreement,
                data=arguments.data, data_root=arguments.data_root, seed=0, parity_samples=8192,
            )  # fmt: skip
            exports[precision] = exported.path
            gates[precision] = exported.parity.summary if exported.parity else "pending"
            print(precision, gates[precision])
        for engine in ENGINES:
            if available(engine)[0]:
                results.append(certify_shares(exports, engine, arguments, work))
                print(results[-1])
    machine = environment()
    command = (
        f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/int8_certificates.py RUN --data npz:TEST.npz --images "
        f"{arguments.images} --skip {arguments.skip} --shares {arguments.shares} --n {arguments.n} "
        f"--max-disagreement {arguments.max_disagreement:g}"
    )
    text = page(results, gates, machine, command)
    print(text)
    if arguments.out:
        write_text(arguments.out.with_suffix(".md"), text)
        write_json(
            arguments.out.with_suffix(".json"),
            {"environment": machine, "command": command, "parity": gates, "results": results},
        )


if __name__ == "__main__":
    main()
