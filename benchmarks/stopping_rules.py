"""What stopping rules save: simulated on published certification logs, and measured on a trained model.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/stopping_rules.py --logs LOGS --artefact EXPORT --data-root DATA --out OUT

Simulation (needs --logs, the published logs): each image's probability is recovered from its printed radius,
`p = Phi(radius / sigma)`, an abstention taken for 1/2; then votes are drawn and each rule's boundaries followed. Mean
samples are compared with Wald's information bound, cut at n for each image; the certified share with what the fixed
rule gives on votes of the same probabilities.

Measured (needs --artefact, trained on MNIST): images/s of `radius` against `fixed` at n = 100,000, both n0 samples
included, on the same images; the table of `grid`; `two-class` on the same counts; latency of single answers. Without
--logs or --artefact that part is left out, and the result says so.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from scipy import special

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.certificates import Certificate, read_certificates
from smoothmix_deploy.data import load_data
from smoothmix_deploy.files import write_json, write_text
from smoothmix_deploy.rules import make_rule
from smoothmix_deploy.statistics.sequential import information_bound, probability_above

N, N0, ALPHA, BETA = 100_000, 100, 0.001, 0.01
RADII, STEP = (0.25, 0.5, 1.0), 0.25
FILES = {  # name -> (path below LOGS, sigma)
    "MNIST, SmoothMix, 0.50": ("smoothmix/mnist/smoothmix/smix_1.0_4_m1/tau_1.0/num_4/21/noise_0.5", 0.5),
    "CIFAR-10, SmoothMix, 0.25": ("smoothmix/cifar10/smoothmix/noise_0.25", 0.25),
    "CIFAR-10, SmoothMix, 0.50": ("smoothmix/cifar10/smoothmix/noise_0.5", 0.5),
    "CIFAR-10, Cohen, 1.00": ("cohen/cifar10/resnet110/noise_1.00/test/sigma_1.00", 1.0),
}


def follow(rule, q: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(samples, number of radii certified) of images with success probabilities q, along the rule's boundaries."""
    b = rule.boundaries
    count, samples, certified = (np.zeros(len(q), np.int64) for _ in range(3))
    before, going = 0, np.ones(len(q), bool)
    lower_RL = np.vstack([b.lower_RL, np.full((1, len(b.looks)), N + 1)])  # above the last radius nothing is open
    for i, t in enumerate(b.looks):
        count[going] += rng.binomial(t - before, q[going])
        before = t
        number = np.searchsorted(b.upper_RL[:, i], count, side="right")
        ends = going & ((count <= lower_RL[number, i]) | (t == N))
        samples[ends], certified[ends] = t, number[ends]
        going &= ~ends
    return samples, certified


def bounds(q: np.ndarray, p0: float) -> np.ndarray:
    """Wald's bound for each image, cut at n."""
    return np.array([min(N, information_bound(float(one), p0, ALPHA, BETA)) for one in q])


def simulate(logs: Path) -> list[dict]:
    """Rows of the simulated table."""
    rows, rng = [], np.random.default_rng(0)
    for name, (path, sigma) in FILES.items():
        if not (logs / path).exists():
            rows.append({"log": name, "skipped": "not among the logs"})
            continue
        with open(logs / path, newline="") as file:
            radii = [float(r["radius"]) if r["predict"] != "-1" else 0.0 for r in csv.DictReader(file, delimiter="\t")]
        q = np.minimum(special.ndtr(np.array(radii) / sigma), 1 - 1e-9)
        votes = rng.binomial(N, q)
        fixed = special.ndtri(special.betaincinv(np.maximum(votes, 1), N - np.maximum(votes, 1) + 1, ALPHA)) * sigma
        for radius in RADII:
            try:
                rule = make_rule("radius", sigma=sigma, n=N, alpha=ALPHA, radius=radius)
            except smx.BadInput:
                continue  # more than n can prove at this sigma
            samples, certified = follow(rule, q, rng)
            bound = bounds(q, probability_above(radius, sigma)).mean()
            rows.append({
                "log": name, "rule": f"radius {radius:g}", "mean_samples": samples.mean(), "bound": bound,
                "over_bound": samples.mean() / bound, "fewer": N / samples.mean(),
                "certified": (certified > 0).mean(), "fixed": (fixed >= radius).mean(),
            })  # fmt: skip
        rule = make_rule("grid", sigma=sigma, n=N, alpha=ALPHA, grid=STEP)
        samples, certified = follow(rule, q, rng)
        cells = (fixed[:, None] >= np.array(rule.radii)).sum(1)
        rows.append({
            "log": name, "rule": f"grid {STEP:g}", "mean_samples": samples.mean(), "fewer": N / samples.mean(),
            "certified": (certified > 1).mean(), "fixed": (cells > 1).mean(), "cells_equal": (cells == certified).mean(),
            "largest_difference": max(
                abs(float((certified > j).mean() - (cells > j).mean())) for j in range(len(rule.radii))
            ),
        })  # fmt: skip
    return rows


def measure(artefact: Path, data_root: Path, images: int, work: Path) -> dict:
    """`fixed`, then the others on the same images; all figures."""
    skip = 10_000 // images
    common = {"data": "mnist", "data_root": data_root, "engine": "ort", "skip": skip, "seed": 1}

    def certify(name: str, **rule) -> tuple[list[Certificate], dict]:
        result = smx.certify(artefact, out=work / f"{name}.jsonl", **{**common, "n": N, **rule})
        print(f"{name}: {result.seconds:.1f} s, {result.samples / result.seconds:,.0f} samples/s", file=sys.stderr)
        found = {
            "images_per_second": len(read_certificates(result.path).certificates) / result.seconds,
            "samples_per_second": result.samples / result.seconds,
            "mean_samples": result.summary.mean_samples,
            "acr": result.summary.acr,
        }
        return read_certificates(result.path).certificates, found

    fixed, at_n = certify("fixed")
    sigma = read_certificates(work / "fixed.jsonl").manifest.sigma
    results: dict = {"images": len(fixed), "sigma": sigma, "fixed": at_n, "radius": {}}
    for radius in RADII:  # ten times as many images: it is quick
        certificates, found = certify(f"radius{radius}", rule="radius", radius=radius, skip=skip // 10)
        found |= {
            "images": len(certificates),
            "speed_up": found["images_per_second"] / at_n["images_per_second"],
            "certified": float(np.mean([c.prediction >= 0 for c in certificates])),
            "certified_same": sum(c.prediction >= 0 for c in certificates[::10]),
            "fixed_same": sum(c.radius >= radius for c in fixed),
            "mean_samples_same": float(np.mean([c.n for c in certificates[::10]])),
            "bound_same": bounds(recovered(fixed), probability_above(radius, sigma)).mean(),
        }
        results["radius"][f"{radius:g}"] = found
    _, found = certify("grid", rule="grid", grid=STEP)
    table = smx.report(work / "fixed.jsonl", work / "grid.jsonl", radii=list(np.arange(0, 2, STEP))).record()["files"]
    found |= {
        "share_of_samples": found["mean_samples"] / N,
        "table": table[1]["certified"],
        "fixed": table[0]["certified"],
    }
    results["grid"] = found
    two = make_rule("two-class", sigma=sigma, n=N, alpha=ALPHA)
    results["two_class"] = {"0.5": {"fixed": at_n["acr"], "two-class": acr(two, fixed)}}
    other, _ = certify("sigma1", sigma=1.0, n=20_000)
    one, two = (make_rule(name, sigma=1.0, n=20_000, alpha=ALPHA) for name in ("fixed", "two-class"))
    results["two_class"]["1 (n = 20,000)"] = {"fixed": acr(one, other), "two-class": acr(two, other)}
    return results


def recovered(fixed: list[Certificate]) -> np.ndarray:
    """Each image's share of votes for its class A; an image that abstains at 1/2 is given A's share all the same."""
    chosen = [max(c.selection_counts, key=lambda k: (c.selection_counts[k], -k)) for c in fixed]
    shares = [c.counts.get(a, 0) / c.n for a, c in zip(chosen, fixed, strict=True)]
    return np.clip(shares, 1e-9, 1 - 1e-9)


def acr(rule, certificates: list[Certificate]) -> float:
    """Average certified radius that the rule gives on these counts."""
    radii = []
    for c in certificates:
        selection, counts = np.zeros(10, np.int64), np.zeros(10, np.int64)
        for dense, sparse in ((selection, c.selection_counts), (counts, c.counts)):
            for k, votes in sparse.items():
                dense[k] = votes
        verdict = rule.decide(selection, counts, c.n)
        radii.append(verdict.radius if verdict.prediction == c.label else 0.0)
    return float(np.mean(radii))


def latency(artefact: Path, data_root: Path, count: int) -> list[dict]:
    """Milliseconds of single answers, the engine open."""
    images = load_data("mnist", root=data_root)
    rows = []
    for radius in RADII:
        ask = smx.Predictor(artefact, engine="ort", rule="radius", radius=radius, n=10_000, seed=1)
        for i in range(20):
            ask(images.image(i))
        times = []
        for i in range(count):
            begin = time.perf_counter()
            ask(images.image(i))
            times.append(1000 * (time.perf_counter() - begin))
        p50, p90, p99 = np.percentile(times, [50, 90, 99])
        rows.append({"radius": radius, "images": count, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "n": 10_000})
        print(f"latency at {radius:g}: p50 {p50:.1f} ms, p99 {p99:.1f} ms", file=sys.stderr)
    return rows


def text_of(simulated: list[dict], measured: dict, latencies: list[dict]) -> list[str]:
    """The page."""
    lines = []
    if simulated:
        lines += ["## Simulated on published logs, n = 100,000", ""]
        lines += [
            "| log | rule | mean samples | over the bound | fewer than n | certified | by the fixed rule | cells equal |"
        ]
        lines += ["|---|---|---:|---:|---:|---:|---:|---:|"]
        for r in simulated:
            if "skipped" in r:
                lines.append(f"| {r['log']} | {r['skipped']} | | | | | | |")
                continue
            over = f"{r['over_bound']:.2f}" if "over_bound" in r else ""
            cells = f"{r['cells_equal']:.3f} (table within {r['largest_difference']:.4f})" if "cells_equal" in r else ""
            lines.append(
                f"| {r['log']} | {r['rule']} | {r['mean_samples']:,.0f} | {over} | {r['fewer']:.1f}x "
                f"| {r['certified']:.4f} | {r['fixed']:.4f} | {cells} |"
            )
        lines += ["", "Certified: at the radius, right or wrong; for the grid at its first step.", ""]
    if measured:
        f, g = measured["fixed"], measured["grid"]
        lines += [f"## Measured: LeNet, MNIST, sigma {measured['sigma']:g}, {measured['images']} images", ""]
        lines += [
            "| rule | images | images/s | times fixed | mean samples | certified "
            "| certified of the same images | mean samples there, over the bound |"
        ]
        lines += ["|---|---:|---:|---:|---:|---:|---|---|"]
        lines.append(
            f"| fixed | {measured['images']} | {f['images_per_second']:.3f} | 1 | {f['mean_samples']:,.0f} | | | |"
        )
        for radius, r in measured["radius"].items():
            lines.append(
                f"| radius {radius} | {r['images']} | {r['images_per_second']:.1f} | {r['speed_up']:.0f} "
                f"| {r['mean_samples']:,.0f} | {r['certified']:.3f} | {r['certified_same']}, fixed {r['fixed_same']} "
                f"| {r['mean_samples_same']:,.0f}, {r['mean_samples_same'] / r['bound_same']:.2f} |"
            )
        times = g["images_per_second"] / f["images_per_second"]
        lines.append(
            f"| grid {STEP:g} | {measured['images']} | {g['images_per_second']:.2f} | {times:.1f} | {g['mean_samples']:,.0f} | | | |"
        )
        shown = ", ".join(f"{r}: {g['table'][r]:.3f} / {g['fixed'][r]:.3f}" for r in g["table"])
        lines += ["", f"Certified accuracy, grid / fixed, at {shown}."]
        for sigma, two in measured["two_class"].items():
            lines.append(
                f"ACR on the same counts at sigma {sigma}: fixed {two['fixed']:.4f}, two-class {two['two-class']:.4f}."
            )
        lines.append("")
    for r in latencies:
        lines.append(
            f"Latency of one answer, `Predictor`, rule radius {r['radius']:g}, n <= {r['n']:,}, {r['images']:,} images: "
            f"p50 {r['p50_ms']:.1f} ms, p90 {r['p90_ms']:.1f} ms, p99 {r['p99_ms']:.1f} ms."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, help="folder of the published logs")
    parser.add_argument("--artefact", type=Path, help="export of a LeNet trained on MNIST")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--latency-images", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    a = parser.parse_args()
    simulated = simulate(a.logs) if a.logs else []
    latencies, measured = [], {}
    if a.artefact:
        open_artefact(a.artefact)
        latencies = latency(a.artefact, a.data_root, a.latency_images)
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(a.artefact, a.data_root, a.images, Path(folder))
    lines = text_of(simulated, measured, latencies)
    for given, what in ((a.logs, "simulation: no --logs"), (a.artefact, "measurement: no --artefact")):
        lines += [] if given else [f"Left out: {what}."]
    machine = environment()
    lines += ["", f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}."]
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".")
    command = f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/stopping_rules.py"
    command += (" --logs LOGS" if a.logs else "") + (" --artefact EXPORT --data-root DATA" if a.artefact else "")
    command += f" --images {a.images} --latency-images {a.latency_images}"
    lines.append(f"Command: `{command}`")
    text = "\n".join(lines) + "\n"
    print(text)
    if a.out:
        write_text(a.out.with_suffix(".md"), "# Stopping rules\n\n" + text)
        record = {"environment": machine, "command": command, "simulated": simulated, "measured": measured}
        write_json(a.out.with_suffix(".json"), {**record, "latency": latencies})


if __name__ == "__main__":
    main()
