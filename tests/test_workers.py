"""Workers side by side: the lines of one process, whoever is killed, refused or late."""

import json
import os
import random
import signal
import time
import traceback
from dataclasses import replace

import numpy as np
import pytest
from onnx_models import half_space, write_npz

import smoothmix_deploy as smx
from smoothmix_deploy.certification import dispatcher, local_workers
from smoothmix_deploy.certification.dispatcher import ItemVotes
from smoothmix_deploy.certification.driver import Team, identity
from smoothmix_deploy.certification.leases import Report
from smoothmix_deploy.certification.local_workers import LocalFleet
from smoothmix_deploy.certification.worker import Failure, Greeting
from smoothmix_deploy.engines import EngineInfo

RULES = {
    "fixed": {"rule": "fixed"},
    "two-class": {"rule": "two-class"},
    "radius": {"rule": "radius", "radius": 0.2},
    "grid": {"rule": "grid", "grid": 0.1},
    "anytime": {"rule": "anytime", "tolerance": 0.1},
}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """(model, data) of 500 8-bit images, some of them near the plane."""
    folder, rng = tmp_path_factory.mktemp("plane"), np.random.default_rng(5)
    x = rng.integers(0, 256, (500, 2, 4), dtype=np.uint8)
    weights = rng.standard_normal(8)
    labels = (x.reshape(-1, 8) / 255 @ weights > 0.3).astype(int)
    return half_space(folder / "h.onnx", weights, 0.3), write_npz(folder / "x.npz", x, labels)


def certify(planes, out, **arguments):
    """With a fixed seed, at sigma 0.25, in small batches."""
    settings = {"n": 2000, "seed": 1, "batch_size": 64, "stop": 30, "threads": 1, **arguments}
    return smx.certify(planes[0], engine="ort", data=planes[1], sigma=0.25, out=out, **settings)


def records(path):
    """All lines without what is not reproducible."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "created")} for line in lines]


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        ("fixed", "grid"),
        ("radius", "gaussian"),
        *(pytest.param(name, noise, marks=SLOW) for name in RULES for noise in ("gaussian", "grid")),
    ],
)
def test_lines_of_two_workers_are_those_of_one_process(name, noise, planes, tmp_path):
    """Every rule, both noises."""
    options = {**RULES[name], "noise": noise}
    certify(planes, tmp_path / "one.jsonl", **options)
    certify(planes, tmp_path / "two.jsonl", workers=2, **options)
    assert records(tmp_path / "two.jsonl") == records(tmp_path / "one.jsonl")


@pytest.fixture(autouse=True)
def small_items(monkeypatch):
    """Enough of them to be stopped or killed in, on any machine."""
    monkeypatch.setattr(dispatcher, "ITEM_SECONDS", 0.02)


@pytest.mark.parametrize(
    ("name", "kills"), [("grid", 2), pytest.param("fixed", 10, marks=SLOW), pytest.param("grid", 10, marks=SLOW)]
)
def test_workers_killed(name, kills, planes, tmp_path, monkeypatch):
    """SIGKILL, each time after two results: 200 images, the same file; and the notes say what happened."""
    options = {**RULES[name], "stop": 200, "n": 5000 if name == "fixed" else 50_000}
    certify(planes, tmp_path / "one.jsonl", **options)
    killed, since, notes = [], 0, []

    def events(self, timeout, events=LocalFleet.events):
        nonlocal since
        found = events(self, timeout)
        for worker, event in found:
            since += isinstance(event, ItemVotes | Report)
            if since >= 2 and len(killed) < kills and worker in self.process_ids():
                os.kill(self.process_ids()[worker], signal.SIGKILL)
                killed.append(worker)
                since = 0
        return found

    monkeypatch.setattr(LocalFleet, "events", events)
    certify(planes, tmp_path / "two.jsonl", workers=2, note=notes.append, **options)
    assert len(killed) == kills
    assert (
        sum("its process died; starting it again" in note for note in notes) >= kills - 2
    )  # the last may not be noticed
    assert records(tmp_path / "two.jsonl") == records(tmp_path / "one.jsonl")


def test_stopped_and_resumed_with_another_number_of_workers(planes, tmp_path):
    """Ctrl-C with two workers, on with one process, and on with three."""
    certify(planes, tmp_path / "one.jsonl", n=50_000)
    out = tmp_path / "c.jsonl"
    for workers in (2, None):
        seen = 0

        def stop(what, done, total, details):
            nonlocal seen
            seen += 1
            if seen == 2 and done < total:
                raise KeyboardInterrupt

        with pytest.raises(smx.Stopped, match="--resume"):
            certify(planes, out, n=50_000, workers=workers, resume=out.exists(), progress=stop)
    certify(planes, out, n=50_000, workers=3, resume=True)
    assert records(out) == records(tmp_path / "one.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "one.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"workers": 0}, smx.BadInput, "--workers 0"),
        ({"ray": "auto"}, smx.BadInput, "needs --workers"),
        ({"workers": 2, "device": "cuda"}, smx.Unavailable, "worker .: .*CPU"),
        ({"workers": 2, "noise": "grid", "data": "float"}, smx.BadInput, "8-bit"),
    ],
)
def test_what_cannot_be(arguments, error, said, planes, tmp_path):
    """One line, with the exit code of a run in one process."""
    model, data = planes
    if arguments.pop("data", None):
        data = write_npz(tmp_path / "f.npz", np.random.default_rng(0).random((4, 2, 4)), np.arange(4) % 2)
    with pytest.raises(error, match=said):
        certify((model, data), tmp_path / "c.jsonl", **arguments)
    assert not (tmp_path / "c.jsonl").exists()


class _Scripted:
    """A fleet whose events are written down."""

    def __init__(self, script):
        self.names = sorted({name for name, _ in script})
        self.script, self.started, self.dismissed = list(script), [], []

    def start(self, name):
        self.started.append(name)

    def events(self, timeout):
        return [self.script.pop(0)]

    def dismiss(self, name):
        self.dismissed.append(name)

    def close(self):
        self.names = []


INFO = EngineInfo("ort", "1", "cpu", "fp32", 64, 1, (1, 2, 4), 2, "a" * 64)


def team(*script, expected=None):
    notes = []
    fleet = _Scripted(script)
    with Team(fleet, notes.append, expected) as made:
        try:
            return made.greeting().host, notes, fleet
        except smx.SmxError as error:
            return error, notes, fleet


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"version": "2"}, "engine version is 2, this run's is 1"),
        ({"device": "cuda (H100)"}, "engine device"),
        ({"batch_size": 32}, "engine batch_size"),
        ({"artefact_sha256": "b" * 64}, "artefact is b"),
    ],
)
def test_another_engine_is_refused_by_name(other, what):
    """The run goes on with the others; where none is left, it is a failed check."""
    resumed = identity(INFO.record(), "a" * 64, "d")
    odd, good = Greeting("far", replace(INFO, **other), {}, "d"), Greeting("near", INFO, {}, "d")
    host, notes, fleet = team(("w0", odd), ("w1", good), expected=resumed)
    assert (host, fleet.dismissed) == ("near", ["w0"])
    assert len(notes) == 1
    assert f"w0 on far is refused: its {what}" in notes[0]
    error, _, _ = team(("w0", odd), expected=resumed)
    assert isinstance(error, smx.CheckFailed)
    wrong_data = replace(good, data_digest="e")
    assert "data digest" in str(team(("w0", wrong_data), expected=resumed)[0])


def test_workers_that_cannot_start():
    """A dead one is started again three times; one that says why is not; the last one's reason is the run's."""
    error, notes, fleet = team(("w0", Failure(4, "no GPU")), *[("w1", None)] * 4)
    assert fleet.started == ["w0", "w1", "w1", "w1", "w1"]
    assert "w0: no GPU; the run goes on without it" in notes[0]
    assert isinstance(error, smx.Stopped)
    assert "given up after 4 deaths" in str(error)
    error, _, _ = team(("w0", Failure(4, "no GPU")))
    assert isinstance(error, smx.Unavailable)


def test_each_worker_sees_its_own_gpu(monkeypatch):
    """Worker i takes the i-th of the devices that this process may use."""
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert local_workers.visible_gpus() == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local_workers.visible_gpus() == ["0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixed", "grid"])
def test_ray_workers_killed_ten_times(name, planes, tmp_path, monkeypatch):
    """The same lines from Ray actors that are killed, each time after two results; slow: Ray takes half a minute."""
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    from smoothmix_deploy.certification.ray_workers import RayFleet

    options = {**RULES[name], "stop": 200, "n": 20_000 if name == "fixed" else 100_000}
    certify(planes, tmp_path / "one.jsonl", **options)
    killed, since = [], 0

    def events(self, timeout, events=RayFleet.events):
        nonlocal since
        found = events(self, timeout)
        for worker, event in found:
            since += isinstance(event, ItemVotes | Report)
            if since >= 2 and len(killed) < 10 and worker in self._actors:
                os.kill(ray.get(self._actors[worker].process_id.remote()), signal.SIGKILL)
                killed.append(worker)
                since = 0
        return found

    monkeypatch.setattr(RayFleet, "events", events)
    certify(planes, tmp_path / "ray.jsonl", ray="auto", workers=2, **options)
    assert len(killed) == 10
    assert records(tmp_path / "ray.jsonl") == records(tmp_path / "one.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(None, 200), (2, 20)])
def test_driver_killed_and_resumed(workers, kills, planes, tmp_path):
    """SIGKILL at random moments, each time resumed: no line lost, twice or changed, nothing left behind."""
    settings = {"stop": 500, "n": 4000, "rule": "grid", "grid": 0.1}
    one, out = tmp_path / "one.jsonl", tmp_path / "c.jsonl"
    assert _wait(_forked(planes, one, **settings)) == 0
    rng, killed, finished, before = random.Random(0), 0, 0, b""
    while killed < kills:
        child = _forked(planes, out, workers=workers, resume=True, **settings)
        more = rng.choice([0, 1, 300, 2000, 20_000])
        while (status := _ended(child)) is None and _size(out) < len(before) + more:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3 if more else 3.0))
        if status is None and (status := _ended(child)) is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            content = out.read_bytes() if out.exists() else b""
            assert content.startswith(before[: before.rfind(b"\n") + 1])
            before = content
        else:  # complete: begin again
            assert status == 0
            assert records(out) == records(one)
            finished += 1
            out.unlink()
            before = b""
    assert _wait(_forked(planes, out, workers=workers, resume=True, **settings)) == 0
    assert records(out) == records(one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "one.jsonl"]


def _forked(planes, out, **settings):
    """A run in a child; this process must not have threads of ONNX Runtime, which a child would not have."""
    child = os.fork()
    if child == 0:
        try:
            certify(planes, out, **settings)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def _ended(child):
    """Its exit status; None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _size(path):
    return path.stat().st_size if path.exists() else 0
