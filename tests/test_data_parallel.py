"""Several processes, and steps in parts: the run is the same to rounding, and exactly itself when it is resumed.

Most tests put each "process" on a thread; the ones at the end use torchrun and gloo.
"""

import copy
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import smoothmix_deploy as smx
from smoothmix_deploy.training import loop, run
from smoothmix_deploy.training.batches import BatchSource
from smoothmix_deploy.training.distributed import Processes, local_statistics
from smoothmix_deploy.training.division import Division
from smoothmix_deploy.training.launch import Launch, launched
from smoothmix_deploy.training.loop import Trainer
from smoothmix_deploy.training.stopping import StopRequests

# Mini-batches of 21 images and one of 3 at an epoch's end: nothing divides evenly. The mix loss of an untrained network
# is small, so it gets a large weight.
RUN = {"data": "digits", "device": "cpu", "epochs": 2, "stop": 137, "batch_size": 64, "m": 3, "attack_steps": 2}
RUN |= {"eta": 3000.0, "seed": 1}  # a seed for which rounding moves no image across the edge of a class
TIMING = {"seconds", "images_per_second", "processes"}

pytestmark = pytest.mark.usefixtures("undrawn")


class Threads(Processes):
    """Processes that are threads of this one."""

    def __init__(self, rank, world_size, shared):
        super().__init__(Launch(rank, rank, world_size, world_size))
        self._shared = shared

    def gather(self, value):
        values, barrier = self._shared
        values[self.rank] = value
        barrier.wait()
        found = list(values)
        barrier.wait()
        return found

    def any(self, *flags):
        return [any(column) for column in zip(*self.gather(flags), strict=True)]

    def _from_first(self, value):
        return copy.deepcopy(self.gather(value)[0])

    def add_up(self, tensors):
        everybodys = self.gather([tensor.clone() for tensor in tensors])
        for tensor, *addends in zip(tensors, *everybodys, strict=True):
            tensor.copy_(sum(addends))


@pytest.fixture(scope="module")
def train_on():
    """smx.train, with its Trainer on so many threads; gives the result of each, or the error of each."""

    def train(world_size, **options):
        shared = ([None] * world_size, threading.Barrier(world_size, timeout=60))
        trainers = []

        class Copies(Trainer):
            def run(self, *, resume):
                values = {name: getattr(self, name) for name in self.__dataclass_fields__}
                for rank in range(world_size):
                    own = values | {"model": copy.deepcopy(self.model), "processes": Threads(rank, world_size, shared)}
                    trainers.append(Trainer(**own))
                with ThreadPoolExecutor(world_size) as pool:
                    running = [pool.submit(trainer.run, resume=resume) for trainer in trainers]
                problems = {str(error) for error in (future.exception() for future in running) if error}
                assert len(problems) <= 1, problems
                results = [future.result() for future in running]
                return results[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "Trainer", Copies)
            smx.train(**options)
        return trainers

    return train


def weights(folder):
    return load_file(str(folder / "model.safetensors"))


def far(a, b):
    """The largest difference between two folders' weights."""
    first, second = weights(a), weights(b)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def metrics(folder):
    """Without what is not reproducible."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """RUN by one process in one part."""
    return smx.train(out=tmp_path_factory.mktemp("alone") / "run", **RUN).path


@pytest.mark.parametrize(("world_size", "parts"), [(1, 1), (1, 4), (2, 1), (3, 2), (5, 3)])
@pytest.mark.parametrize("size", [0, 1, 5, 6, 14, 15, 16, 64])
def test_division_covers_every_image_once(size, world_size, parts):
    """Rows tile the mini-batch and weights add up to one; what is too small everybody does, with the same total."""
    divisions = [Division(rank, world_size, parts) for rank in range(world_size)]
    rows = [part for division in divisions for part in division.rows(size)]
    assert sum(divisions[0].weight(part, size) for part in rows) == pytest.approx(1, abs=1e-12)
    assert len({len(division.rows(size)) for division in divisions}) == 1  # calls of the network
    if size >= world_size * parts:
        assert [i for part in rows for i in range(size)[part]] == list(range(size))
        assert len(rows) == world_size * parts
        assert {part.stop - part.start for part in rows} <= {size // len(rows), -(-size // len(rows))}
    else:
        assert rows == [slice(0, size)] * world_size


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (1, 4), (2, 1), (3, 1), (2, 2)])
def test_however_it_is_divided(world_size, accumulate, alone, train_on, tmp_path):
    """Losses, accuracies and weights of one process to rounding; and all processes have the same weights to the bit."""
    trainers = train_on(world_size, out=tmp_path / "run", accumulate=accumulate, **RUN)
    assert far(tmp_path / "run", alone) < 1e-6
    for line, expected in zip(metrics(tmp_path / "run"), metrics(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-6, abs=1e-8)
        for exact in ("train_accuracy", "noisy_accuracy"):
            assert line[exact] == pytest.approx(expected[exact], abs=1e-12)
    for trainer in trainers[1:]:
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(tensor, trainers[0].model.state_dict()[name])


@pytest.mark.parametrize("wrong", ["weight", "rows"])
def test_a_wrong_division_is_noticed(wrong, alone, train_on, tmp_path, monkeypatch):
    """The comparison has teeth: unweighted parts, or everybody's taking the first rows, are far outside its tolerance."""
    if wrong == "weight":
        monkeypatch.setattr(Division, "weight", lambda self, rows, size: 1 / (self.world_size * self.parts))
    else:
        divided = Division.rows
        monkeypatch.setattr(Division, "rows", lambda self, size: divided(Division(0, self.world_size, 1), size))
    train_on(2, out=tmp_path / "run", accumulate=2 if wrong == "weight" else 1, **RUN)
    assert far(tmp_path / "run", alone) > 1e-5


@pytest.fixture(scope="module")
def on_two(train_on, tmp_path_factory):
    """RUN by two threads when nothing happens."""
    out = tmp_path_factory.mktemp("on_two") / "run"
    train_on(2, out=out, **RUN)
    return out


@pytest.mark.parametrize("batch", [0, 1, 3, 5])
def test_a_stop_in_one_process_stops_all_at_the_same_batch(batch, train_on, on_two, tmp_path, monkeypatch):
    """And the resumed run is bit for bit the uninterrupted one with as many processes; with one, to rounding."""
    instances = itertools.count()

    class AskedOnce(StopRequests):
        """A request in one of the processes alone, before loaded batch number `batch` (three an epoch, and its end)."""

        def __init__(self, echo):
            super().__init__(echo)
            self._here, self._looks = next(instances) == 0, 0

        @property
        def requested(self):
            self._looks += 1
            return self._here and self._looks > batch

        @requested.setter
        def requested(self, value):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopRequests", AskedOnce)
        with pytest.raises(smx.Stopped, match="--resume"):
            train_on(2, out=tmp_path / "parts", **RUN)
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    train_on(2, out=tmp_path / "parts", resume=True, **RUN)
    assert far(tmp_path / "parts", on_two) == 0
    assert metrics(tmp_path / "parts") == metrics(on_two)
    smx.train(out=tmp_path / "alone", resume=True, **RUN)
    assert far(tmp_path / "alone", on_two) < 1e-6


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_process_is_everybodys(failing, train_on, tmp_path, monkeypatch):
    """All raise it (the fixture checks that there is one message), and what was trained is saved."""
    original = BatchSource.epoch

    def epoch(self, epoch, first=0):
        for number, batch in enumerate(original(self, epoch, first), start=first):
            if self._division.rank == failing and self._division.world_size == 2 and number == 2:
                raise smx.BadInput("7.png: cannot be decoded")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(BatchSource, "epoch", epoch)
        with pytest.raises(smx.BadInput, match=r"7\.png"):
            train_on(2, out=tmp_path / "run", **RUN)
    assert json.loads(torch.load(tmp_path / "run" / "state.pt")["position"])["batch"] == 2


def test_a_full_disk_stops_all(train_on, tmp_path, monkeypatch):
    """Only process 0 writes, but all end, with exit code 5."""

    def full(folder, state):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop, "write_state", full)
    with pytest.raises(smx.Stopped, match="No space left"):
        train_on(3, out=tmp_path / "run", **RUN)


def test_batch_norm_statistics_are_the_same_in_all_processes(train_on, tmp_path):
    """On the CPU each normalises by its own images, but running statistics are averaged: a run resumes exactly."""
    small = {"data": "digits", "arch": f"{__name__}:WithBatchNorm", "device": "cpu", "epochs": 1, "stop": 64}
    small |= {"batch_size": 32, "m": 2, "attack_steps": 1}
    first, second = train_on(2, out=tmp_path / "two", **small)
    ours, theirs = local_statistics(first.model), local_statistics(second.model)
    assert len(ours) == 2
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    alone = smx.train(out=tmp_path / "one", **small).path
    assert 0 < far(tmp_path / "two", alone) < 0.05


class WithBatchNorm(torch.nn.Module):
    """A network for `--arch`."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4 * 36, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().flatten(1))


# With torchrun and gloo --------------------------------------------------------------------------------------------

LONGER = {**RUN, "epochs": 5, "eta": 5.0}


def torchrun(*more, **options):
    """Two processes that train; options as of smx.train."""
    # "--m" would be ambiguous to torchrun.
    words = [w for k, v in options.items() for w in (f"--{'num-noise' if k == 'm' else k.replace('_', '-')}", str(v))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "smx_cli"]
    return subprocess.Popen(
        [*command, "train", *words, *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ended(process):
    """Standard output, our own error lines, and everything on stderr."""
    stdout, stderr = process.communicate(timeout=240)
    return stdout, [line for line in stderr.splitlines() if line.startswith("smx: error: ")], stderr


def rank_pid(process, rank):
    """The process of that rank, among the children of torchrun."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in f"\0{Path(f'/proc/{child}/environ').read_text()}":
            return int(child)
    raise AssertionError(f"no rank {rank}")


def wait_for_new_state(folder, process, times=1):
    """Until state.pt was written anew so often."""
    state = folder / "state.pt"
    for _ in range(times):
        before = state.stat().st_mtime_ns if state.exists() else 0
        end = time.monotonic() + 120
        while not state.exists() or state.stat().st_mtime_ns == before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.002)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """LONGER by two processes under torchrun."""
    out = tmp_path_factory.mktemp("two") / "run"
    process = torchrun("--json", **LONGER, out=out)
    stdout, errors, stderr = ended(process)
    assert process.returncode == 0, stderr
    assert not errors
    assert len(stdout.splitlines()) == 1  # process 0 alone speaks
    assert json.loads(stdout)["metrics"]["processes"] == 2
    return out


def test_torchrun_gives_the_run_of_one_process(by_two, tmp_path):
    """Two gloo processes, losses to 1e-5 (in fact to rounding), weights too."""
    alone = smx.train(out=tmp_path / "run", **LONGER).path
    assert far(by_two, alone) < 2e-6
    for line, expected in zip(metrics(by_two), metrics(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert {path.name for path in by_two.iterdir()} == {path.name for path in alone.iterdir()}


LEAVES = """
import os
import torch
from smoothmix_deploy.training.distributed import joined
from smoothmix_deploy.training.launch import launched

with joined(launched(), torch.device("cpu")) as processes:
    torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1).step()
    processes.gather(1)
names = [open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")]
print([name for name in names if "gloo" in name])
"""


def test_no_thread_of_a_run_outlives_it(tmp_path):
    """One that lets go of a tensor while Python ends aborts the process: an eighth of the runs that had ended well."""
    (tmp_path / "leaves.py").write_text(LEAVES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, tmp_path / "leaves.py"], capture_output=True, text=True, timeout=120)
    assert "".join(done.stdout.split()) == "[][]", done.stdout + done.stderr


@pytest.mark.slow
def test_torchrun_stopped_and_killed_goes_on_exactly(by_two, tmp_path):
    """SIGTERM to one process stops both, one line, exit code 5; kill -9 to one ends the other; then bit for bit."""
    out = tmp_path / "run"
    process = torchrun("--save-every", "0", **LONGER, out=out)
    wait_for_new_state(out, process, times=4)
    os.kill(rank_pid(process, 1), signal.SIGTERM)
    stdout, errors, stderr = ended(process)
    assert stdout == ""
    assert len(errors) == 1
    assert "--resume" in errors[0]
    assert "exitcode  : 5" in stderr.partition("Root Cause")[2]
    process = torchrun("--save-every", "0", "--resume", **LONGER, out=out)
    wait_for_new_state(out, process, times=3)
    os.kill(rank_pid(process, 1), signal.SIGKILL)
    _, errors, _ = ended(process)
    assert len(errors) <= 1  # none if torchrun was faster
    process = torchrun("--resume", **LONGER, out=out)
    assert ended(process)[0]
    assert process.returncode == 0
    assert far(out, by_two) == 0
    assert metrics(out) == metrics(by_two)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_tells_what_is_wrong_in_one_line(rank, tmp_path):
    """Bad input, a second run in the folder, a damaged image: the line comes from process 0, whoever met it."""
    from PIL import Image

    for i in range(8):
        path = tmp_path / f"images/train/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 30 * i).save(path)
    # One batch of 8 an epoch; the image in its first or its second half is process 0's or 1's.
    order = np.random.default_rng([0, 0]).permutation(8)
    files = sorted((tmp_path / "images").rglob("*.png"))
    files[order[4 * rank]].write_bytes(b"no image")
    options = {"data": f"folder:{tmp_path / 'images'}", "arch": "lenet", "sigma": 0.5, "m": 1, "epochs": 1}
    process = torchrun(**options, batch_size=8, attack_steps=1, device="cpu", out=tmp_path / "run")
    stdout, errors, stderr = ended(process)
    assert stdout == ""
    assert len(errors) == 1
    assert f"{files[order[4 * rank]].name}: not an image" in errors[0]
    assert "exitcode  : 2" in stderr.partition("Root Cause")[2]
    assert (tmp_path / "run" / "state.pt").exists()


@pytest.mark.slow
def test_torchrun_killed_many_times(by_two, tmp_path):
    """kill -9 of everything, anywhere, until it is done."""
    out, rng = tmp_path / "run", np.random.default_rng(0)
    process = torchrun("--save-every", "0", **LONGER, out=out)
    for _ in range(6):
        wait_for_new_state(out, process, times=2)
        time.sleep(rng.uniform(0, 0.1))
        for pid in (rank_pid(process, 0), rank_pid(process, 1), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        process = torchrun("--save-every", "0", "--resume", **LONGER, out=out)
    assert ended(process)[0]
    assert process.returncode == 0
    assert far(out, by_two) == 0
    assert not list(out.glob(".*"))


def test_launched(monkeypatch):
    """What torchrun sets; other launchers' variables alone mean nothing."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert launched() == Launch(0, 0, 1, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Launch(3, 1, 4, 2)


def test_more_parts_than_images_are_refused(tmp_path):
    """Before anything is written; the values are named."""
    with pytest.raises(smx.BadInput, match=r"--accumulate 22 x 1 processes: .* 21 images"):
        smx.train(out=tmp_path / "run", accumulate=22, **RUN)
    for option, value in (("accumulate", 0), ("save_every", -1.0), ("save_every", float("nan"))):
        with pytest.raises(smx.BadInput, match="--" + option.replace("_", "-")):
            smx.train(out=tmp_path / "run", **RUN, **{option: value})
    assert not (tmp_path / "run").exists()
