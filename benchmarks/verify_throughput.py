"""How long `smx verify` takes for 10,000 certificates: a new process, from start to exit, without torch.

    python benchmarks/verify_throughput.py --out benchmarks/results/verify_throughput

The votes are simulated: class probabilities as a good classifier has them (a tenth of the images near one half), drawn
until the rule decides, so that every rule stops where it would; the lines are the writer's own. One more file of
`fixed` is signed. Each command is run `--rounds` times, in turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import smoothmix_deploy as smx
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.certificates import Certificate, CertificateWriter, Manifest
from smoothmix_deploy.files import write_json, write_text
from smoothmix_deploy.noise.source import GENERATORS
from smoothmix_deploy.rules import Rule, make_rule

SIGMA, ALPHA, N, N0, CLASSES = 0.5, 0.001, 100_000, 100, 10
RULES = {
    "fixed": {},
    "two-class": {},
    "radius": {"radius": 0.5},
    "grid": {"grid": 0.25},
    "anytime": {"tolerance": 0.05},
}


def manifest(rule: Rule, images: int) -> Manifest:
    """Of a run that never was."""
    return Manifest(
        sigma=SIGMA, alpha=ALPHA, n0=N0, n=N, rule=rule.name, rule_parameters=rule.parameters, noise="gaussian",
        generator=GENERATORS["gaussian"], key="0" * 32, key_chosen_by_user=True, seed=0,
        artefact={"name": "simulated", "kind": "onnx", "sha256": "0" * 64, "weights_sha256": None, "precision": "fp32"},
        engine={"name": "simulated", "version": "0", "device": "cpu", "batch_size": 128, "threads": 1},
        data={"name": "simulated", "split": "test", "digest": "0" * 64, "images": images, "shape": [1, 28, 28],
              "start": 0, "stop": images, "skip": 1},
        num_classes=CLASSES, class_names=None, self_test={}, versions={}, created="2000-01-01T00:00:00+00:00",
    )  # fmt: skip


def simulated(rule: Rule, images: int, rng: np.random.Generator) -> Iterator[Certificate]:
    """Certificates of `rule` on multinomial votes."""
    for index in range(images):
        top = rng.uniform(0.4, 0.6) if index % 10 == 0 else rng.beta(8, 0.6)
        p_K = np.append(top, rng.dirichlet(np.full(CLASSES - 1, 0.3)) * (1 - top))
        selection, counts, drawn, verdict = rng.multinomial(N0, p_K), np.zeros(CLASSES, np.int64), 0, None
        while verdict is None:
            look = rule.next_look(drawn)
            counts, drawn = counts + rng.multinomial(look - drawn, p_K), look
            verdict = rule.decide(selection, counts, drawn)
        yield Certificate(
            index=index, label=0, prediction=verdict.prediction, radius=verdict.radius, correct=verdict.prediction == 0,
            n=drawn, selection_counts=sparse(selection), counts=sparse(counts), p_lower=verdict.p_lower, seconds=0.012345,
        )  # fmt: skip


def sparse(counts: np.ndarray) -> dict[int, int]:
    """{class: votes}."""
    return {int(k): int(counts[k]) for k in np.flatnonzero(counts)}


def write_files(images: int, folder: Path) -> dict[str, Path]:
    """A certificate file of every rule, by its name."""
    files = {}
    for name, parameters in RULES.items():
        rule = make_rule(name, sigma=SIGMA, n=N, alpha=ALPHA, **parameters)
        files[name] = folder / f"{name}.jsonl"
        with CertificateWriter(files[name], manifest(rule, images)) as writer:
            for certificate in simulated(rule, images, np.random.default_rng(0)):
                writer.write(certificate)
    return files


def sign_copy(path: Path) -> tuple[Path, Path]:
    """(a signed copy, the public key); the key pair is made by openssl, as documented."""
    private, public, copy = path.with_name("private.pem"), path.with_name("public.pem"), path.with_name("signed.jsonl")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    shutil.copy(path, copy)
    smx.sign(copy, key=private)
    return copy, public


def timed(arguments: list[str]) -> dict[str, float]:
    """Seconds of one `smx verify` in a new process, on the clock and of the processor; torch must not be loaded."""
    code = (
        "import sys; from smx_cli.main import _run; code = _run(sys.argv[1:], False);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "verify", *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = {name: [str(path)] for name, path in write_files(arguments.images, Path(folder)).items()}
        signed, public = sign_copy(Path(commands["fixed"][0]))
        commands["fixed, signed"] = [str(signed), "--key", str(public)]
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                found.setdefault(name, []).append(timed(command))
    lines = ["| file | median | slowest | processor time, median |", "|---|---:|---:|---:|"]
    for name, runs in found.items():
        seconds, cpu = [r["seconds"] for r in runs], [r["cpu"] for r in runs]
        lines.append(f"| {name} | {np.median(seconds):.2f} s | {max(seconds):.2f} s | {np.median(cpu):.2f} s |")
    lines += [
        "",
        f"{arguments.images:,} certificates a file, n = {N:,}, {CLASSES} classes, votes simulated; a new process",
    ]
    lines[-1] += f" each time, {arguments.rounds} rounds. Torch is not imported (asserted)."
    machine = environment()
    lines += ["", f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}."]
    lines.append(f"Other processes' load at the start (1 minute): {load:.1f}.")
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".")
    command = f"python benchmarks/verify_throughput.py --images {arguments.images} --rounds {arguments.rounds}"
    lines.append(f"Command: `{command}`")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        write_text(arguments.out.with_suffix(".md"), "# Verification throughput\n\n" + text)
        record = {"environment": machine, "command": command, "load": load, "results": found}
        write_json(arguments.out.with_suffix(".json"), record)


if __name__ == "__main__":
    main()
