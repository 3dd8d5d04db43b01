"""`smx demo`: the whole line on data that ships with scikit-learn. No network, no GPU, no options needed.

Trains SmoothMix and the Gaussian baseline with equal budgets, exports both through the parity gate, certifies the test
images on ONNX Runtime, verifies the certificates (sampling some again), benchmarks the artefact, and reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .benchmarking.run import BenchResult, bench
from .certification.run import certify
from .certification.verify import verify
from .errors import BadInput
from .exporting.run import export
from .progress import Progress, silent
from .reporting.report import report
from .reporting.table import Report
from .statistics.bounds import fewest_samples
from .training.run import train

METHODS = ("smoothmix", "gaussian")


@dataclass(frozen=True)
class DemoResult:
    """Everything is in `path`; open `page`."""

    path: Path
    plot: Path
    page: Path
    report: Report
    bench: BenchResult
    seconds: float


def demo(
    *,
    out: Path | str = "smx-demo",
    n: int = 5_000,
    seed: int | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Run every stage into the new folder `out`. Raises BadInput if `out` is there already.

    `seed` None: training with seed 0, certificates with a key from the operating system.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out {out}: exists; remove it or choose another")
    if n < fewest_samples(0.001):
        raise BadInput(f"--n {n}: too few samples to certify anything; use at least {fewest_samples(0.001)}")
    clock = time.monotonic()
    certificates = []
    for method in METHODS:
        run, artefact, certs = out / f"run-{method}", out / f"export-{method}", out / f"{method}.jsonl"
        note(f"train: {method} on digits (1,437 real images, 8 x 8)")
        train(recipe=f"{method}-digits-0.25", out=run, seed=seed or 0, device="cpu", progress=progress)
        exported = export(run, out=artefact, seed=seed, progress=progress)
        assert exported.parity is not None
        note(f"export: parity gate passed, {exported.parity.summary}")
        certify(artefact, engine="ort", data="digits", n=n, out=certs, seed=seed, progress=progress)
        checked = verify(certs, artefact=artefact, rerun=3, seed=seed, progress=progress)
        note(
            f"certify: {checked.certificates} certificates in {certs}; verified, {len(checked.rerun)} images sampled again"
        )
        certificates.append(certs)
    plot, page = out / "certified-accuracy.png", out / "report.html"
    result = report(*certificates, plot=plot, html=page)
    (out / "report.md").write_text(result.table("markdown") + "\n", encoding="utf-8")
    note("bench: latency and throughput of the exported model")
    measured = bench(
        out / "export-smoothmix",
        batch_sizes=(1, 256),
        n=n,
        seconds=1.5,
        out=out / "bench.json",
        progress=progress,
    )
    return DemoResult(out, plot, page, result, measured, time.monotonic() - clock)
