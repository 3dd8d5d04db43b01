"""`smx bench`: latency and throughput of artefacts on engines, and how much of it certification reaches.

Each figure is of this machine at this moment. A configuration is warmed up, then timed for at least 10 batches and
3 seconds; it is flagged when the two halves of its timings disagree.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artefacts import Artefact, open_artefact
from .certification.sampler import run
from .certification.scheduler import Scheduler
from .data import InMemorySet
from .engines import ENGINES, Engine, available, open_engine
from .errors import BadInput, Unavailable
from .files import atomic_path, check_writable, write_json
from .noise.gaussian import random_key
from .progress import Progress, silent
from .reporting.plot import check_plot_name
from .rules.fixed import FixedRule
from .versions import versions

WARM_UP_SECONDS, LEAST_SECONDS, LEAST_ITERATIONS = 0.2, 3.0, 10
_UNSTABLE = 0.10


@dataclass(frozen=True)
class BenchRow:
    """One artefact on one engine at one batch size."""

    artefact: str
    engine: str
    precision: str
    batch_size: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    throughput: float
    """Raw engine rate, images/s."""
    end_to_end: float
    """Samples/s with noise, votes and counting."""
    raw_share: float
    """end_to_end / throughput."""
    certified_per_second: float
    """Images/s at n0 + n samples each."""
    peak_memory_mb: float | None
    iterations: int
    stable: bool


@dataclass(frozen=True)
class BenchResult:
    """All rows and the machine they were measured on."""

    environment: dict[str, Any]
    n: int
    n0: int
    results: list[BenchRow]
    skipped: dict[str, str]
    """Engine -> why it was not measured."""

    def record(self) -> dict[str, Any]:
        """What `--json` prints and `--out` holds."""
        return asdict(self)


def bench(
    *artefacts: Path | str,
    engine: str = "all",
    batch_sizes: Sequence[int] = (1, 8, 64, 256, 1000),
    n: int = 100_000,
    n0: int = 100,
    seconds: float = LEAST_SECONDS,
    device: str = "auto",
    threads: int | None = None,
    out: Path | str | None = None,
    plot: Path | str | None = None,
    progress: Progress = silent,
) -> BenchResult:
    """Time each artefact on each engine that runs it, at each batch size. `seconds`: least time a configuration.

    Raises BadInput or, where not even one configuration can run, Unavailable.
    """
    if not artefacts:
        raise BadInput("name at least one run folder, export folder or .onnx file")
    if not batch_sizes or min(batch_sizes) < 1:
        raise BadInput("--batch-sizes: must be whole numbers >= 1, e.g. 1,64,256")
    if not seconds > 0 or n < 1 or n0 < 1:
        raise BadInput("--seconds, --n and --n0 must be positive")
    if out is not None:
        check_writable(Path(out), "--out")
    if plot is not None:
        check_plot_name(Path(plot))
    opened = [open_artefact(path) for path in artefacts]
    todo, skipped = _configurations(opened, engine)
    rows: list[BenchRow] = []
    total = len(todo) * len(batch_sizes)
    for artefact, name in todo:
        for size in batch_sizes:
            progress("benchmarking", len(rows), total, f"{artefact.path.name} on {name}, batch {size}")
            runner = open_engine(artefact, name, batch_size=size, device=device, threads=threads)
            rows.append(_measure(artefact, runner, n, n0, seconds))
    progress("benchmarking", total, total, "done")
    result = BenchResult(environment(), n, n0, rows, skipped)
    if out is not None:
        write_json(Path(out), result.record())
    if plot is not None:
        _write_plot(result, Path(plot))
    return result


def _configurations(opened: list[Artefact], engine: str) -> tuple[list[tuple[Artefact, str]], dict[str, str]]:
    names = list(ENGINES) if engine == "all" else [name.strip() for name in engine.split(",")]
    skipped: dict[str, str] = {}
    todo = []
    wrong: BadInput | None = None
    for name in names:
        version, reason = available(name)
        if version is None:
            if engine != "all":
                raise Unavailable(reason)
            skipped[name] = reason
            continue
        for artefact in opened:
            try:
                open_engine(artefact, name)
            except BadInput as error:
                if engine != "all":
                    raise
                wrong = error
                skipped[f"{name}: {artefact.path.name}"] = str(error)
            else:
                todo.append((artefact, name))
    if not todo and wrong is not None:
        raise wrong
    if not todo:
        raise Unavailable("no engine here runs these artefacts: " + "; ".join(skipped.values()))
    return todo, skipped


def _measure(artefact: Artefact, engine: Engine, n: int, n0: int, seconds: float) -> BenchRow:
    size = engine.info.batch_size
    x = np.random.default_rng(0).standard_normal((size, *engine.info.input_shape), dtype=np.float32)
    _run_for(engine, x, WARM_UP_SECONDS, 1)
    times = _run_for(engine, x, seconds, LEAST_ITERATIONS)
    throughput = size * len(times) / times.sum()
    end_to_end = _end_to_end(engine, throughput, min(seconds, 2.0))
    half = len(times) // 2
    first, second = np.median(times[:half]), np.median(times[half:])
    p50, p90, p95, p99 = np.percentile(times * 1e3, [50, 90, 95, 99])
    return BenchRow(
        artefact=artefact.path.name,
        engine=engine.info.name,
        precision=engine.info.precision,
        batch_size=size,
        mean_ms=float(times.mean() * 1e3),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p95_ms=float(p95),
        p99_ms=float(p99),
        throughput=float(throughput),
        end_to_end=end_to_end,
        raw_share=end_to_end / float(throughput),
        certified_per_second=end_to_end / (n + n0),
        peak_memory_mb=_peak_memory_mb(),
        iterations=len(times),
        stable=bool(abs(first - second) <= _UNSTABLE * min(first, second)),
    )


def _run_for(engine: Engine, x: np.ndarray, seconds: float, least: int) -> np.ndarray:
    times: list[float] = []
    begin = clock = time.perf_counter()
    while len(times) < least or clock - begin < seconds:
        engine.logits(x)
        now = time.perf_counter()
        times.append(now - clock)
        clock = now
    return np.array(times)


def _end_to_end(engine: Engine, throughput: float, seconds: float) -> float:
    """Samples/s of the certifier's own loop, on one grey image, for about `seconds`."""
    channels, height, width = engine.info.input_shape
    names = [str(k) for k in range(engine.info.num_classes)]
    grey = np.full((1, height, width, channels), 0.5, np.float32)
    images = InMemorySet("grey", "test", grey, np.zeros(1, np.int64), names)
    size = engine.info.batch_size
    samples = size * max(4, round(throughput * seconds / size))
    scheduler = Scheduler([0], FixedRule(1.0, samples, 0.001), 0, engine.info.num_classes)
    begin = time.perf_counter()
    run(engine, images, scheduler, sigma=0.5, key=random_key(), after_batch=lambda _: None)
    return samples / (time.perf_counter() - begin)


def _peak_memory_mb() -> float | None:
    """Of this process so far; None where the system does not tell."""
    try:  # not getrusage: a child starts with its parent's peak there
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peak[0]) / 1024 if peak else None


def environment() -> dict[str, Any]:
    """What a benchmark must say of its machine."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "versions": versions("torch", "onnxruntime", "onnxruntime-gpu"),
    }


def processor_name() -> str:
    """The processor's product name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _write_plot(result: BenchResult, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys((r.artefact, r.engine, r.precision) for r in result.results):
        rows = [r for r in result.results if (r.artefact, r.engine, r.precision) == name]
        sizes = [r.batch_size for r in rows]
        (line,) = left.plot(sizes, [r.throughput for r in rows], marker="o", label=f"{name[0]}: {name[1]} {name[2]}")
        left.plot(sizes, [r.end_to_end for r in rows], marker=".", linestyle=":", color=line.get_color())
        right.plot(sizes, [r.p50_ms for r in rows], marker="o", color=line.get_color())
        right.fill_between(
            sizes, [r.p50_ms for r in rows], [r.p99_ms for r in rows], alpha=0.15, color=line.get_color()
        )
    left.set_ylabel("images/s (dotted: certification, end to end)")
    right.set_ylabel("latency of a batch, ms (p50 to p99)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("batch size")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160)
