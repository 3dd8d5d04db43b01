"""`smx bench`: latency and throughput of artefacts on engines, and how much of it certification reaches.

Two scenarios after MLPerf Inference: single stream (one image at a time: percentiles of its latency) and offline (the
batch size with the highest rate). And what is bought with it: certified images a second, cost of a certificate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artefacts import Artefact, open_artefact
from ..certification.sampler import run
from ..certification.scheduler import Scheduler
from ..data import InMemorySet
from ..engines import ENGINES, Engine, available, candidates, concurrent_calls, on_device, open_engine
from ..errors import BadInput, CheckFailed, SmxError, Unavailable
from ..files import check_writable, write_json
from ..noise.gaussian import random_key
from ..progress import Progress, silent
from ..reporting.plot import check_plot_name
from ..rules.fixed import FixedRule
from .environment import environment, gpu_memory_mb, peak_memory_mb, reset_peak_memory
from .timing import LEAST_SECONDS, time_calls

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class BenchRow:
    """One artefact on one engine at one batch size. `*_interval`: of 95 % confidence; None: too few runs for one."""

    artefact: str
    engine: str
    precision: str
    batch_size: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p50_interval: Interval
    p90_interval: Interval
    p95_interval: Interval
    p99_interval: Interval
    throughput: float
    """Raw engine rate, images/s, with a call on every core."""
    end_to_end: float
    """Samples/s with noise, votes and counting."""
    raw_share: float
    """end_to_end / throughput."""
    certified_per_second: float
    """Images/s at n0 + n samples each."""
    cost_per_certificate: float | None
    """In the unit of the cost per hour that the user gave."""
    peak_memory_mb: float | None
    """Of the process, while this was measured."""
    gpu_memory_mb: float | None
    """More in use on the GPU than before the engine was opened."""
    iterations: int
    tries: int
    stable: bool


@dataclass(frozen=True)
class Scenario:
    """One artefact on one engine, over its batch sizes. None: batch size 1 was not measured."""

    artefact: str
    engine: str
    precision: str
    single_stream_p50_ms: float | None
    single_stream_p99_ms: float | None
    single_stream_p99_interval: Interval
    offline_batch_size: int
    offline_throughput: float
    offline_certified_per_second: float
    offline_cost_per_certificate: float | None
    stable: bool


@dataclass(frozen=True)
class BenchResult:
    """All rows and the machine they were measured on."""

    environment: dict[str, Any]
    n: int
    n0: int
    cost_per_hour: float | None
    results: list[BenchRow]
    scenarios: list[Scenario]
    skipped: dict[str, str]
    """Engine, or engine and artefact -> why it was not measured."""

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
    cost_per_hour: float | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: Path | str | None = None,
    plot: Path | str | None = None,
    progress: Progress = silent,
) -> BenchResult:
    """Time each artefact on each engine that runs it, at each batch size. `seconds`: least time a configuration.

    Raises BadInput, or, where not even one configuration can run, what stood in the way of the first.
    """
    if not artefacts:
        raise BadInput("name at least one run folder, export folder or .onnx file")
    if not batch_sizes or min(batch_sizes) < 1:
        raise BadInput("--batch-sizes: must be whole numbers >= 1, e.g. 1,64,256")
    if not 0 < seconds <= 86_400 or n < 1 or n0 < 1:
        raise BadInput("--seconds, --n and --n0 must be positive, --seconds at most a day")
    if cost_per_hour is not None and not cost_per_hour >= 0:
        raise BadInput(f"--cost-per-hour {cost_per_hour}: must not be negative")
    if out is not None:
        check_writable(Path(out), "--out")
    if plot is not None:
        check_plot_name(Path(plot))
    opened = [open_artefact(path) for path in artefacts]
    todo, skipped = _configurations(opened, engine, device)
    rows: list[BenchRow] = []
    first_error: SmxError | None = None
    for done, (artefact, name, size) in enumerate((a, e, b) for a, e in todo for b in sorted(set(batch_sizes))):
        progress("benchmarking", done, len(todo) * len(batch_sizes), f"{artefact.path.name} on {name}, batch {size}")
        reset_peak_memory()
        before = gpu_memory_mb()
        try:
            options: dict[str, Any] = {"batch_size": size, "device": device, "threads": threads}
            single = open_engine(artefact, name, low_latency=True, **options)
            runner = open_engine(artefact, name, **options)
        except (BadInput, CheckFailed, Unavailable) as error:
            if engine != "all":
                raise
            first_error = first_error or error
            skipped[f"{name}: {artefact.path.name}"] = str(error)
            continue
        rows.append(_measure(artefact, single, runner, n, n0, seconds, cost_per_hour, before))
    progress("benchmarking", 1, 1, "done")
    if not rows:
        raise first_error or Unavailable("no engine here runs these artefacts: " + "; ".join(skipped.values()))
    result = BenchResult(environment(), n, n0, cost_per_hour, rows, _scenarios(rows), skipped)
    if out is not None:
        write_json(Path(out), result.record())
    if plot is not None:
        from .plot import write_plot

        write_plot(result, Path(plot))
    return result


def _configurations(
    opened: list[Artefact], engine: str, device: str
) -> tuple[list[tuple[Artefact, str]], dict[str, str]]:
    """Which engines to try on which artefacts; for "all", why others are left out."""
    if engine != "all":
        return [(a, name.strip()) for a in opened for name in engine.split(",")], {}
    skipped = {}
    for name in ENGINES:
        version, reason = available(name)
        if version is None:
            skipped[name] = reason
    todo = [(a, name) for a in opened for name in candidates(a, device) if name not in skipped]
    if not todo and device == "cuda":
        raise Unavailable("; ".join(skipped.values()) + "; or use --device cpu")
    return todo, skipped


def _measure(
    artefact: Artefact, single: Engine, engine: Engine, n: int, n0: int, seconds: float, cost_per_hour: float | None,
    gpu_before: float | None,
) -> BenchRow:  # fmt: skip
    """`single` gives its whole to one batch, for latencies; `engine` is what the sampler uses, for rates."""
    size = engine.info.batch_size
    timing = time_calls(raw_call(single), seconds)
    mean_ms = float(timing.times_ms.mean())
    throughput = raw_rate(engine, min(seconds, 2.0))
    end_to_end = end_to_end_rate(engine, throughput, min(seconds, 2.0))
    gpu_now = gpu_memory_mb()
    per_second = end_to_end / (n + n0)
    percentiles: dict[str, Any] = {f"p{q}_ms": timing.percentile(q) for q in (50, 90, 95, 99)}
    intervals: dict[str, Any] = {f"p{q}_interval": timing.interval(q) for q in (50, 90, 95, 99)}
    return BenchRow(
        artefact=artefact.path.name or str(artefact.path),
        engine=engine.info.name,
        precision=engine.info.precision,
        batch_size=size,
        mean_ms=mean_ms,
        **percentiles,
        **intervals,
        throughput=throughput,
        end_to_end=end_to_end,
        raw_share=end_to_end / throughput,
        certified_per_second=per_second,
        cost_per_certificate=None if cost_per_hour is None else cost_per_hour / 3600 / per_second,
        peak_memory_mb=peak_memory_mb(),
        gpu_memory_mb=None if gpu_now is None or gpu_before is None else max(0.0, gpu_now - gpu_before),
        iterations=len(timing.times_ms),
        tries=timing.tries,
        stable=timing.stable,
    )


def raw_call(engine: Engine) -> Any:
    """A function of no arguments that runs one prepared batch to its end, where the engine's batches live."""
    x = np.random.default_rng(0).standard_normal((engine.info.batch_size, *engine.info.input_shape), dtype=np.float32)
    device = on_device(engine)
    if device is None or device.device.type != "cuda":
        return lambda: engine.logits(x)
    import torch

    there = torch.from_numpy(x).to(device.device)

    def call() -> None:
        device.device_logits(there)
        torch.cuda.synchronize(device.device)

    return call


def raw_rate(engine: Engine, seconds: float) -> float:
    """Images/s of the engine alone, on prepared batches, with as many calls at a time as the sampler makes."""
    calls, run_one = concurrent_calls(engine), raw_call(engine)
    run_one()
    begin = time.perf_counter()

    def repeat(_: int) -> int:
        runs = 0
        while time.perf_counter() - begin < seconds or runs == 0:
            run_one()
            runs += 1
        return runs

    with ThreadPoolExecutor(calls) as pool:
        runs = sum(pool.map(repeat, range(calls)))
    return runs * engine.info.batch_size / (time.perf_counter() - begin)


def end_to_end_rate(engine: Engine, throughput: float, seconds: float) -> float:
    """Samples/s of the certifier's own loop, on one grey image, for about `seconds`."""
    channels, height, width = engine.info.input_shape
    names = [str(k) for k in range(engine.info.num_classes)]
    grey = np.full((1, height, width, channels), 0.5, np.float32)
    images = InMemorySet("grey", "test", grey, np.zeros(1, np.int64), names)
    size = engine.info.batch_size

    def certify(samples: int) -> float:
        scheduler = Scheduler([0], FixedRule(1.0, samples, 0.001), 0, engine.info.num_classes)
        begin = time.perf_counter()
        run(engine, images, scheduler, sigma=0.5, key=random_key(), after_batch=lambda _: None)
        return samples / (time.perf_counter() - begin)

    certify(4 * size)  # on a GPU, compiles the noise
    return certify(size * max(4, round(throughput * seconds / size)))


def _scenarios(rows: list[BenchRow]) -> list[Scenario]:
    found = []
    for key in dict.fromkeys((r.artefact, r.engine, r.precision) for r in rows):
        mine = [r for r in rows if (r.artefact, r.engine, r.precision) == key]
        one = next((r for r in mine if r.batch_size == 1), None)
        best = max(mine, key=lambda r: r.throughput)
        most = max(mine, key=lambda r: r.certified_per_second)
        found.append(
            Scenario(
                *key,
                one.p50_ms if one else None,
                one.p99_ms if one else None,
                one.p99_interval if one else None,
                best.batch_size,
                best.throughput,
                most.certified_per_second,
                most.cost_per_certificate,
                all(r.stable for r in mine),
            )
        )
    return found
