"""Kill, Ctrl-C and a full disk: what was computed is kept, and a resumed run ends like one that was never stopped."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy import certificates, files
from smoothmix_deploy.training import loop
from smoothmix_deploy.training.state import read_state, sole_run

CERTIFY = ("--n", "8000", "--stop", "16", "--seed", "1", "--threads", "1")
TRAIN = {"data": "digits", "device": "cpu", "epochs": 2, "stop": 64, "batch_size": 32, "attack_steps": 1}
FILES = {"MODEL_CARD.md", "config.json", "metrics.jsonl", "model.safetensors", "state.pt", "training.png"}
pytestmark = pytest.mark.usefixtures("undrawn")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def records(path):
    """The certificates of a file without the one field that is not reproducible."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["kind"] == "manifest"
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines[1:]]


def start(*arguments):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "smx_cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=240):
    """Until something is true of the running process's files."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)


def lines_in(path):
    """Whole lines of a growing file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(digits_export, tmp_path_factory):
    """What CERTIFY gives when nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "c.jsonl"
    assert cli._run(["certify", str(digits_export), *CERTIFY, "--out", str(out)], debug=False) == 0
    return records(out)


@pytest.mark.parametrize(
    ("signal_number", "code"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, 5),
        pytest.param(signal.SIGINT, 5, marks=pytest.mark.slow),  # has SIGTERM's handler
    ],
)
def test_certify_killed_and_resumed(signal_number, code, digits_export, uninterrupted, tmp_path):
    """The same lines, whatever stopped it; only whole lines on the way; nothing else left at the end."""
    out = tmp_path / "c.jsonl"
    process = start("certify", digits_export, *CERTIFY, "--out", out)
    wait_for(lambda: lines_in(out) >= 3, process)
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    if code == 5:
        assert stderr.count("smx: error: ") == 1
        assert "--resume" in stderr
        assert (tmp_path / "c.jsonl.partial").exists()
        assert out.read_bytes().endswith(b"\n")
    assert 2 <= lines_in(out) - 1 < len(uninterrupted)
    assert cli._run(["certify", str(digits_export), *CERTIFY, "--out", str(out), "--resume"], debug=False) == 0
    assert records(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_every_cut_of_the_file_resumes_to_the_same_lines(digits_export, tmp_path):
    """A machine that dies may leave any prefix of the file."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    arguments = {"n": 200, "stop": 4, "seed": 3, "batch_size": 32}
    smx.certify(digits_export, out=whole, **arguments)
    content = whole.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for size in (
        0,
        1,
        40,
        ends[0] - 1,
        ends[0],
        ends[0] + 1,
        ends[1] - 1,
        ends[1],
        ends[2] + 30,
        ends[3] - 1,
        len(content),
    ):
        cut.write_bytes(content[:size])
        smx.certify(digits_export, out=cut, resume=True, **arguments)
        assert records(cut) == records(whole), size


def test_zeros_at_the_end_are_dropped(digits_export, tmp_path):
    """What some file systems leave of a line that was not yet on the disk."""
    out = tmp_path / "c.jsonl"
    arguments = {"n": 200, "stop": 4, "seed": 3, "batch_size": 32}
    smx.certify(digits_export, out=out, **arguments)
    expected, content = records(out), out.read_bytes()
    for tail in (b"\0" * 200, b"\0" * 200 + b"\n"):
        out.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1] + tail)
        smx.certify(digits_export, out=out, resume=True, **arguments)
        assert records(out) == expected


def test_a_clock_that_steps_back(digits_export, tmp_path, monkeypatch):
    """An hour, whenever somebody looks: the same lines, and no time below nothing."""
    arguments = {"n": 2000, "stop": 6, "seed": 3, "batch_size": 32}
    smx.certify(digits_export, out=tmp_path / "whole.jsonl", **arguments)
    now = time.time()
    hours = iter(range(1, 10**9))
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(hours))
    shown = []
    out = tmp_path / "c.jsonl"
    smx.certify(digits_export, out=out, progress=lambda *a: shown.append(a[3]), **arguments)
    assert records(out) == records(tmp_path / "whole.jsonl")
    assert all(json.loads(line).get("seconds", 0) >= 0 for line in out.read_text().splitlines())
    assert shown
    assert not any("-" in text.partition("samples/s")[0] for text in shown)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"manifest_sha256": 5}', "\0\0"])
def test_damaged_partial_votes_cost_time_only(content, digits_export, tmp_path):
    """The companion file may be anything."""
    arguments = {"n": 200, "stop": 3, "seed": 3, "batch_size": 32}
    smx.certify(digits_export, out=tmp_path / "whole.jsonl", **arguments)
    out = tmp_path / "c.jsonl"
    out.write_bytes((tmp_path / "whole.jsonl").read_bytes().partition(b"\n")[0] + b"\n")
    (tmp_path / "c.jsonl.partial").write_text(content)
    smx.certify(digits_export, out=out, resume=True, **arguments)
    assert records(out) == records(tmp_path / "whole.jsonl")
    assert not (tmp_path / "c.jsonl.partial").exists()


@pytest.mark.parametrize("line", [0, 1, 3])
def test_disk_full_while_certifying(line, digits_export, tmp_path, monkeypatch, capfd):
    """Exit 5, whole lines only; with room again, the same lines as ever."""
    arguments = ["certify", str(digits_export), "--n", "200", "--stop", "6", "--seed", "3", "--batch-size", "32"]
    assert cli._run([*arguments, "--out", str(tmp_path / "whole.jsonl")], debug=False) == 0
    out = tmp_path / "c.jsonl"

    def writer(self, text, write=certificates.CertificateWriter._append):
        if lines_in(out) == line:
            self._file = _Full(self._file)
        write(self, text)

    monkeypatch.setattr(certificates.CertificateWriter, "_append", writer)
    capfd.readouterr()
    assert cli._run([*arguments, "--out", str(out)], debug=False) == 5
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert "c.jsonl: cannot write (No space left on device)" in stderr.splitlines()[-1]
    assert "--resume" in stderr.splitlines()[-1]
    assert lines_in(out) == line
    assert out.read_bytes()[-1:] in (b"", b"\n")
    monkeypatch.undo()
    assert cli._run([*arguments, "--out", str(out), "--resume"], debug=False) == 0
    assert records(out) == records(tmp_path / "whole.jsonl")


class _Full:
    """A file on a disk that takes ten more bytes."""

    def __init__(self, file):
        self._file = file

    def write(self, data):
        self._file.write(data[:10])
        self._file.flush()
        raise FULL

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_two_runs_on_one_file(digits_export, tmp_path, capfd):
    """The second is refused while the first holds the file; the file is as it was."""
    out = tmp_path / "c.jsonl"
    arguments = ["certify", str(digits_export), "--n", "200", "--stop", "3", "--seed", "3", "--out", str(out)]
    assert cli._run(arguments, debug=False) == 0
    before = out.read_bytes()
    with open(out, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert cli._run([*arguments, "--resume"], debug=False) == 2
        assert "another smx process is writing" in capfd.readouterr().err
    assert cli._run(arguments, debug=False) == 2
    assert "add --resume" in capfd.readouterr().err
    assert out.read_bytes() == before
    assert cli._run([*arguments, "--resume"], debug=False) == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value"),
    [("n", 300), ("sigma", 0.3), ("alpha", 0.01), ("n0", 50), ("seed", 4), ("batch-size", 16),
     ("start", 1), ("stop", 4), ("skip", 2), ("split", "train"), ("threads", 2)],
)  # fmt: skip
def test_resuming_something_else_is_refused(option, value, digits_export, tmp_path, capfd):
    """One file, one run: the first difference is named, the file untouched."""
    out = tmp_path / "c.jsonl"
    common = ["certify", str(digits_export), "--out", str(out)]
    values = {"n": 200, "stop": 3, "seed": 3, "batch-size": 32}
    assert cli._run([*common, *_options(values)], debug=False) == 0
    before = out.read_bytes()
    assert cli._run([*common, *_options({**values, option: value}), "--resume"], debug=False) == 2
    assert "was begun with" in capfd.readouterr().err
    assert out.read_bytes() == before


def _options(values):
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_keyboard_interrupt_anywhere_is_5(monkeypatch, capfd):
    """Typer must not turn it into an exit code of its own."""

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(smx, "doctor", stop, raising=False)
    assert cli._run(["doctor"], debug=False) == 5
    assert "smx: error: stopped" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_a_library_turns_into_an_error_is_5(number, tmp_path):
    """As torch.onnx does with what reaches it in native code: not the network is to blame. Nor do we end by SIGINT."""
    (tmp_path / "command.py").write_text(f"""
import ctypes, signal, smoothmix_deploy
from smx_cli.main import main
def doctor(*_, **__):
    run = ctypes.pythonapi.PyRun_String
    run.restype, run.argtypes = ctypes.py_object, [ctypes.c_char_p, ctypes.c_int, ctypes.py_object, ctypes.py_object]
    try:
        run(b"signal.raise_signal({int(number)})", 257, globals(), globals())
    except KeyboardInterrupt:
        raise smoothmix_deploy.BadInput("cannot export this network")
smoothmix_deploy.doctor = doctor
main(["doctor"])""")
    command = [sys.executable, "-m", "command"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (finished.returncode, finished.stdout, finished.stderr) == (5, "", "smx: error: stopped\n")


@pytest.mark.parametrize("arguments", [("recipes",), ("verify", "c.jsonl")])
def test_reader_that_goes_away(arguments, digits_export, tmp_path):
    """`smx ... | head -1` is no error."""
    smx.certify(digits_export, n=50, stop=2, out=tmp_path / "c.jsonl")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        command = [sys.executable, "-m", "smx_cli", *arguments]
        finished = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert finished.stderr == ""
    assert finished.returncode == 0


def test_results_that_cannot_be_written(tmp_path):
    """stdout on a full disk is an error like any other."""
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "smx_cli", "recipes"]
        finished = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr.startswith("smx: error: ")
    assert "No space left" in finished.stderr


# Training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights that TRAIN gives when nothing happens."""
    out = tmp_path_factory.mktemp("trained") / "run"
    smx.train(out=out, **TRAIN)
    return (out / "model.safetensors").read_bytes()


def finish(out, trained):
    """Resume, and compare all that is reproducible."""
    smx.train(out=out, resume=True, **TRAIN)
    assert (out / "model.safetensors").read_bytes() == trained
    assert json.loads((out / "config.json").read_text())["epochs_completed"] == TRAIN["epochs"]
    epochs = [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(TRAIN["epochs"]))
    assert {path.name for path in out.iterdir()} == FILES


def failing(monkeypatch, target, name, error, call):
    """The `call`-th call of a function fails."""
    original, calls = getattr(target, name), 0

    def fail(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(target, name, fail)


def train_command(out, *more, **changes):
    """TRAIN in a process of its own that saves whenever it can."""
    options = {
        name.replace("_", "-"): value for name, value in {**TRAIN, "out": out, "save-every": 0, **changes}.items()
    }
    return start("train", *_options(options), *more)


def kill_often(out, times, **changes):
    """kill -9 at random moments of a run, each after two more saves at least, then let it end."""
    rng = np.random.default_rng(0)
    state = out / "state.pt"
    for number in range(times):
        process = train_command(out, *(["--resume"] if number else []), **changes)
        for _ in range(2):
            before = state.stat().st_mtime_ns if state.exists() else 0
            wait_for(lambda before=before: state.exists() and state.stat().st_mtime_ns != before, process)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        position = json.loads(read_state(out)["position"])
        assert position["epoch"] < changes.get("epochs", TRAIN["epochs"])
    smx.train(out=out, resume=True, **{**TRAIN, **changes})


@pytest.mark.parametrize(
    ("times", "changes"),
    [(1, {"epochs": 3}), pytest.param(12, {"epochs": 8, "method": "gaussian"}, marks=pytest.mark.slow)],
)
def test_train_killed_and_resumed(times, changes, tmp_path):
    """kill -9 anywhere, in the middle of an epoch or of writing; the weights end up bit for bit the same."""
    smx.train(out=tmp_path / "whole", **{**TRAIN, **changes})
    kill_often(tmp_path / "run", times, **changes)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == parts
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_a_second_run_in_the_folder_is_refused(tmp_path, capfd):
    """While the first one holds it; then what a killed run left half-written is swept away, and nothing else."""
    out = tmp_path / "run"
    smx.train(out=out, **TRAIN)
    arguments = ["train", *_options({**{k.replace("_", "-"): v for k, v in TRAIN.items()}, "out": out}), "--resume"]
    with sole_run(out):
        assert cli._run(arguments, debug=False) == 2
    assert "another smx process trains into it" in capfd.readouterr().err
    for name in (".state.pt.a1b2.pt", ".model.safetensors.x.safetensors", ".mine"):
        (out / name).write_bytes(b"half")
    assert cli._run(arguments, debug=False) == 0
    assert {path.name for path in out.iterdir()} == {*FILES, ".mine"}


def test_read_only_folder(tmp_path, monkeypatch, capfd):
    """One line, exit code 2, before any training (tests may run as root, whom no permission stops)."""

    def read_only(self, *arguments, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    arguments = ["train", *_options({**{k.replace("_", "-"): v for k, v in TRAIN.items()}, "out": tmp_path / "run"})]
    assert cli._run(arguments, debug=False) == 2
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr.splitlines() == [f"smx: error: {tmp_path / 'run'}: Permission denied"]


UPDATES = [1, 2, 4, 5, 9, 10, 16]
"""Of 16: two epochs of two loaded batches of m = 4 steps."""


@pytest.mark.parametrize("update", UPDATES)
def test_train_interrupted_and_resumed(update, trained, tmp_path, monkeypatch):
    """Ctrl-C before any optimiser step, also in the middle of a loaded batch."""
    failing(monkeypatch, loop.Trainer, "_update", KeyboardInterrupt(), update)
    with pytest.raises(smx.Stopped, match="--resume"):
        smx.train(out=tmp_path / "run", **TRAIN)
    monkeypatch.undo()
    finish(tmp_path / "run", trained)


@pytest.mark.parametrize(
    ("target", "name", "error", "call"),
    [
        (loop, "save_weights", FULL, 1),
        (loop, "save_weights", FULL, 2),
        (loop, "save_weights", KeyboardInterrupt(), 2),
        (loop, "write_config", FULL, 2),
        (torch, "save", FULL, 1),
        (torch, "save", FULL, 2),
        (torch, "save", RuntimeError("[enforce fail at inline_container.cc] unexpected pos"), 1),
        (loop, "write_text", FULL, 1),
    ],
)
def test_disk_full_while_training(target, name, error, call, trained, tmp_path, monkeypatch):
    """Wherever it strikes: 5, no stray files, and a resumed run has the weights of its last epoch."""
    failing(monkeypatch, target, name, error, call)
    with pytest.raises(smx.Stopped, match="--resume"):
        smx.train(out=tmp_path / "run", **TRAIN)
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob(".*"))
    finish(tmp_path / "run", trained)


def test_resuming_a_finished_run_restores_missing_weights(trained, tmp_path):
    """The state has them."""
    smx.train(out=tmp_path / "run", **TRAIN)
    (tmp_path / "run" / "model.safetensors").unlink()
    finish(tmp_path / "run", trained)


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("x")])
def test_files_appear_whole_or_not_at_all(error, tmp_path):
    """An earlier file stays, and no temporary one."""
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def write():
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_disk_full_while_exporting(digits_run, tmp_path, monkeypatch, capfd):
    """No half-written artefact."""
    from smoothmix_deploy.exporting import run as exporting

    failing(monkeypatch, exporting, "write_json", FULL, 1)
    assert cli._run(["export", str(digits_run), "--out", str(tmp_path / "e")], debug=False) == 2
    assert "No space left on device" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
