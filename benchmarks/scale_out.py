"""Two workers over one, and where the driver would saturate: local processes, Ray, and a simulated cluster.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/scale_out.py --out benchmarks/results/scale_out

Measured: samples/s of `certify --workers 2` over `--workers 1`, each worker with one thread, LeNet at random weights,
start-up left out (the rate is of the time after the workers are ready). Rounds alternate; ratios are within a round.

Simulated: W workers that draw 100,000 samples/s each. The driver is the real one (`driver.Team`, `Dispatcher`,
`Scheduler`, stopping rule, certificate file, every message pickled both ways); workers are a queue of finishing times.
The driver's clock advances by the processor time that it takes, so a driver that is too slow leaves workers idle.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import os
import pickle
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import smoothmix_deploy as smx
from smoothmix_deploy.benchmarking.environment import environment
from smoothmix_deploy.certificates import CertificateWriter, Manifest
from smoothmix_deploy.certification.campaign import Campaign
from smoothmix_deploy.certification.dispatcher import ItemVotes, WorkItem
from smoothmix_deploy.certification.driver import Event, Team
from smoothmix_deploy.certification.leases import Lease, Report
from smoothmix_deploy.certification.queues import REPORT_SECONDS
from smoothmix_deploy.certification.scheduler import ImageVotes, Votes
from smoothmix_deploy.certification.worker import Greeting
from smoothmix_deploy.data import InMemorySet
from smoothmix_deploy.engines import EngineInfo
from smoothmix_deploy.exporting.onnx_file import write_onnx
from smoothmix_deploy.files import write_json, write_text
from smoothmix_deploy.models.build import build_model
from smoothmix_deploy.progress import silent
from smoothmix_deploy.rules import Rule, make_rule

RATE, BATCH, CLASSES, N, N0 = 100_000, 1024, 1000, 100_000, 100
LATENCY = 0.001
SIMULATED_RULES = {"fixed": {}, "grid": {"grid": 0.25}, "radius": {"radius": 0.5}}


@dataclass
class SimulatedWorker:
    """What it has to do, in order: (begins at, ends at, its votes). Reports as `queues.LeaseQueue` does."""

    images: deque[tuple[float, float, ImageVotes]] = field(default_factory=deque)
    free_at: float = 0.0
    begun: int = 0
    reported: float = 0.0
    will_report: bool = False


class SimulatedFleet:
    """See `driver.Fleet`. Time is the driver's processor time so far plus the time that it waited for events."""

    def __init__(self, workers: int, probabilities: np.ndarray, rule: Rule, seed: int = 0) -> None:
        self.names = [f"w{i}" for i in range(workers)]
        self._p, self._rule, self._rng = probabilities, rule, np.random.default_rng(seed)
        self._workers = {name: SimulatedWorker() for name in self.names}
        self._events: list[tuple[float, int, str, bytes | None]] = []  # None: the worker's time to report
        self._number = 0
        self._cpu = time.process_time()
        self.now = self.driver_seconds = 0.0
        self.messages = self.samples = 0
        self.worker_seconds = 0.0

    def clock(self) -> float:
        """Simulated seconds. Advances by the processor time since the last call."""
        cpu = time.process_time()
        self.now += cpu - self._cpu
        self.driver_seconds += cpu - self._cpu
        self._cpu = cpu
        return self.now

    def skip(self) -> None:
        """What was computed since the last `clock` was a worker's doing."""
        self._cpu = time.process_time()

    def start(self, name: str) -> None:
        """Ready at once."""
        info = EngineInfo("simulated", "1", "cuda", "fp32", BATCH, None, (3, 224, 224), CLASSES, "0" * 64)
        self._push(0.0, name, pickle.dumps(Greeting("here", info, {}, "0"), protocol=5))

    def send(self, name: str, item: WorkItem | Lease) -> None:
        """Done when the worker has done what it had before, and this."""
        data = pickle.dumps(item, protocol=5)
        now = self.clock()
        received = pickle.loads(data)
        worker = self._workers[name]
        if isinstance(received, WorkItem):
            begun = max(now + LATENCY, worker.free_at)
            seconds = received.samples / RATE
            votes = ItemVotes(received.number, tuple(self._votes(s.index, s.count) for s in received.segments), seconds)
            worker.free_at = begun + seconds
            self._push(worker.free_at + LATENCY, name, pickle.dumps(votes, protocol=5))
            self._worked(received.samples)
        else:
            if worker.free_at < now:
                worker.reported = now + LATENCY
            for image in received.images:
                votes = self._decided(image.index)
                begun = max(now + LATENCY, worker.free_at)
                worker.free_at = begun + (votes.selected + votes.drawn) / RATE
                worker.images.append((begun, worker.free_at, votes))
                self._worked(votes.selected + votes.drawn)
            self._report_later(name)
        self.messages += 1
        self.skip()

    def _worked(self, samples: int) -> None:
        self.samples += samples
        self.worker_seconds += samples / RATE

    def _votes(self, index: int, count: int) -> dict[int, int]:
        """Of one image: a top class with its probability, a dozen others."""
        top = self._rng.binomial(count, self._p[index])
        rest = self._rng.multinomial(count - top, [1 / 12] * 12)
        return {k: int(v) for k, v in enumerate([top, *rest]) if v}

    def _decided(self, index: int) -> ImageVotes:
        """The votes at which the rule stops."""
        selection_K, counts_K, drawn = np.zeros(CLASSES, np.int64), np.zeros(CLASSES, np.int64), 0
        selection = self._votes(index, N0)
        selection_K[list(selection)] = list(selection.values())
        while True:
            look = self._rule.next_look(drawn)
            counts = self._votes(index, look - drawn)
            counts_K[list(counts)] += list(counts.values())
            drawn = look
            if self._rule.decide(selection_K, counts_K, drawn) is not None:
                return ImageVotes(index, N0, selection, drawn, Votes(drawn, counts_K).counts, drawn / RATE)

    def _report_later(self, name: str) -> None:
        worker = self._workers[name]
        if worker.will_report or not worker.images:
            return
        worker.will_report = True
        moments = [worker.reported + REPORT_SECONDS, worker.images[-1][0], worker.free_at]
        self._push(min(moment for moment in moments if moment > worker.reported), name, None)

    def _report(self, name: str, now: float) -> None:
        """What the worker has by now; None in progress: so fast a worker has few."""
        worker = self._workers[name]
        worker.will_report = False
        decided = []
        while worker.images and worker.images[0][1] <= now:
            decided.append(worker.images.popleft()[2])
        worker.begun += len(decided)
        in_progress = sum(begins <= now for begins, _, _ in worker.images)
        report = Report(tuple(decided), (), worker.begun + in_progress, now - worker.reported)
        worker.reported = now
        self._push(now + LATENCY, name, pickle.dumps(report, protocol=5))
        self._report_later(name)

    def _push(self, at: float, name: str, event: bytes | None) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, name, event))

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        """All that are due; waits for the next if none is."""
        now = until = self.clock()
        due: list[tuple[str, bytes]] = []
        while self._events and (self._events[0][0] <= until or (not due and self._events[0][0] <= now + timeout)):
            at, _, name, event = heapq.heappop(self._events)
            until = max(until, at)
            if event is None:
                self._report(name, at)
            else:
                due.append((name, event))
        self.now = until
        self.skip()
        return [(name, pickle.loads(data)) for name, data in due]

    def dismiss(self, name: str) -> None:
        """Does not happen here."""

    def close(self) -> None:
        """Nothing to close."""


def published_like(images: int) -> np.ndarray:
    """Probabilities of the top class: a mixture like those of published ImageNet logs, most of them near 1."""
    return np.random.default_rng(1).beta(1.6, 0.35, images).clip(0.02, 0.99999)


def simulate(rule: str, workers: int, seconds: float, folder: Path) -> dict:
    """A run whose work would take `seconds` on `workers` workers with a driver that costs nothing, about."""
    mean = {"fixed": N, "grid": 25_000, "radius": 1_500}[rule]
    images = int(min(max(4 * workers, workers * RATE * seconds / mean), 100_000))
    made = make_rule(rule, sigma=0.5, n=N, alpha=0.001, **SIMULATED_RULES[rule])
    made.decide(np.array([1, 0]), np.array([made.looks[0], 0]), made.looks[0])  # boundaries are computed once
    fleet = SimulatedFleet(workers, published_like(images), made)
    grey = InMemorySet("simulated", "test", np.zeros((images, 1, 1, 1), np.uint8), np.zeros(images, np.int64))
    out = folder / f"{rule}-{workers}.jsonl"
    campaign = Campaign(lambda *a: team.sample(*a), CLASSES, grey, range(images), made, N0, out, silent)
    gc.collect()
    with Team(fleet, print, None, fleet.clock) as team, CertificateWriter(out, _manifest(rule, images)) as writer:
        fleet.skip()
        campaign.run(writer, [])
    fleet.clock()
    return {
        "rule": rule,
        "workers": workers,
        "images": images,
        "samples": fleet.samples,
        "messages": fleet.messages,
        "driver_ms_per_image": 1000 * fleet.driver_seconds / images,
        "driver_share": fleet.driver_seconds / fleet.now,
        "workers_busy": fleet.worker_seconds / (workers * fleet.now),
        "samples_per_second": fleet.samples / fleet.now,
        "driver_limit_samples_per_second": fleet.samples / fleet.driver_seconds,
    }


def _manifest(rule: str, images: int) -> Manifest:
    return Manifest(
        sigma=0.5, alpha=0.001, n0=N0, n=N, rule=rule, noise="gaussian", generator="simulated", key="0" * 32,
        key_chosen_by_user=True, seed=0, artefact={"sha256": "0" * 64}, engine={}, num_classes=CLASSES, class_names=None,
        data={"start": 0, "stop": images, "skip": 1}, self_test={}, versions={}, created="",
    )  # fmt: skip


def measure(kind: str, rounds: int, n: int, work: Path) -> dict:
    """Ratio of two workers to one, of one thread each."""
    torch.manual_seed(0)
    write_onnx(
        build_model("lenet", num_classes=10, input_shape=(1, 28, 28), mean_sd=None).eval(),
        (1, 28, 28),
        work / "l.onnx",
        {},
    )
    x = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(work / "x.npz", x=x, y=np.arange(40) % 10)
    results = []
    for i in range(rounds):
        rates = {}
        for workers in (1, 2):
            found = smx.certify(
                work / "l.onnx", engine="ort", data=f"npz:{work / 'x.npz'}", sigma=0.5, n=n, seed=1, threads=1,
                workers=workers, ray="auto" if kind == "ray" else None, out=work / f"{kind}-{i}-{workers}.jsonl",
            )  # fmt: skip
            rates[workers] = found.samples / found.seconds
        print(f"{kind}: {rates[1]:,.0f} and {rates[2]:,.0f} samples/s: {rates[2] / rates[1]:.2f}", file=sys.stderr)
        results.append(rates)
    return {
        "kind": kind,
        "one": float(np.median([r[1] for r in results])),
        "two": float(np.median([r[2] for r in results])),
        "ratio": float(np.median([r[2] / r[1] for r in results])),
        "rounds": results,
    }


def tables(measured: list[dict], simulated: list[dict]) -> list[str]:
    """Both, in Markdown."""
    lines = []
    if measured:
        lines += ["| workers as | 1 worker, 1 thread | 2 workers, 1 thread each | ratio |", "|---|---:|---:|---:|"]
        lines += [f"| {m['kind']} | {m['one']:,.0f} | {m['two']:,.0f} | {m['ratio']:.2f} |" for m in measured]
        lines += ["", f"Samples/s of LeNet; medians of {len(measured[0]['rounds'])} rounds, ratios within a round.", ""]
    if simulated:
        lines += [
            "| rule | workers | samples/image | driver, ms/image | driver busy | workers busy | samples/s | the driver's limit |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {s['rule']} | {s['workers']} | {s['samples'] / s['images']:,.0f} | {s['driver_ms_per_image']:.2f} | {s['driver_share']:.1%} "
            f"| {s['workers_busy']:.1%} | {s['samples_per_second'] / 1e6:,.2f} M | {s['driver_limit_samples_per_second'] / 1e6:,.0f} M |"
            for s in simulated
        ]
        lines += [
            "",
            f"Simulated: workers of {RATE:,} samples/s, {CLASSES} classes, n = {N:,}, messages {LATENCY * 1000:g} ms each way; start "
            "and end of the run included. The limit: samples over the driver's processor time.",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--kinds", default="local,ray", help="of local, ray; empty: only the simulation")
    parser.add_argument("--workers", default="8,64,512", help="of the simulation; empty: none")
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated, about")
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    measured, simulated = [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind in filter(None, arguments.kinds.split(",")):
            measured.append(measure(kind, arguments.rounds, arguments.n, Path(folder)))
        for rule in SIMULATED_RULES if arguments.workers else ():
            for workers in map(int, arguments.workers.split(",")):
                simulated.append(simulate(rule, workers, arguments.seconds, Path(folder)))
                print(simulated[-1], file=sys.stderr)
    machine = environment()
    command = (
        f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} python benchmarks/scale_out.py --rounds {arguments.rounds} "
    )
    command += (
        f"--n {arguments.n} --kinds {arguments.kinds!r} --workers {arguments.workers!r} --seconds {arguments.seconds:g}"
    )
    lines = tables(measured, simulated)
    lines += ["", f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}."]
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".")
    lines.append(f"Command: `{command}`")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        write_text(arguments.out.with_suffix(".md"), "# Scale-out\n\n" + text)
        record = {"environment": machine, "command": command, "measured": measured, "simulated": simulated}
        write_json(arguments.out.with_suffix(".json"), record)


if __name__ == "__main__":
    main()
