"""Processes that die, disks that are full, folders that are none: nothing half-written has its final name, and the same
command, run again, succeeds. Training and certifying, which resume, are in test_interruption."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy import files

DIES = """
import os, signal, sys
from pathlib import Path
target, call, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
original, calls = getattr(os, target), 0
def dying(*arguments, **named):
    global calls
    if not any("out-" in str(a) for a in arguments):
        return original(*arguments, **named)
    calls += 1
    if calls == call and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **named)
    if calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(os, target, dying)
from smx_cli.main import main
main(sys.argv[4:])
"""


def whole(path):
    """A file that says of itself that it is complete, or a folder with a manifest that is true."""
    if path.is_dir():
        return json.loads((path / "manifest.json").read_text())["kind"] == "export"
    content = path.read_bytes()
    ends = {".png": b"IEND\xaeB`\x82", ".html": b"</html>", ".json": b"}\n"}
    return content.endswith(ends[path.suffix])


def commands(run, export, certs, folder):
    """What writes something at its end, with what it writes."""
    return {
        "export": (["export", run, "--out", folder / "out-e", "--seed", "0"], ["out-e"]),
        "report": (["report", certs, "--plot", folder / "out-p.png", "--html", folder / "out-p.html"], ["out-p.png", "out-p.html"]),
        "bench": (["bench", export, "--engine", "ort", "--batch-sizes", "8", "--seconds", "0.05", "--n", "100",
                   "--out", folder / "out-b.json", "--plot", folder / "out-b.png"], ["out-b.json", "out-b.png"]),
    }  # fmt: skip


def check_recovery(arguments, results, folder):
    """What is there is whole; the command succeeds now, and leaves its results and nothing else."""
    for path in folder.iterdir():
        assert path.name.startswith(".") or whole(path)
    assert cli._run([str(word) for word in arguments], debug=False) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(results)
    assert all(whole(folder / name) for name in results)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("command", "target", "call", "when"),
    [
        ("export", "replace", 1, "before"),  # of the manifest, in the scratch folder
        pytest.param("export", "replace", 1, "after", marks=SLOW),
        pytest.param("export", "replace", 2, "before", marks=SLOW),
        ("report", "replace", 1, "before"),
        pytest.param("report", "replace", 2, "before", marks=SLOW),
        pytest.param("report", "chmod", 1, "after", marks=SLOW),
        pytest.param("bench", "replace", 1, "before", marks=SLOW),
        pytest.param("bench", "replace", 2, "before", marks=SLOW),
    ],
)
def test_killed_at_a_chosen_call(command, target, call, when, digits_run, digits_export, certs, tmp_path):
    """kill -9 round the calls that give files their names."""
    arguments, results = commands(digits_run, digits_export, certs, tmp_path)[command]
    program = [sys.executable, "-c", DIES, target, str(call), when, *map(str, arguments)]
    died = subprocess.run(program, capture_output=True, check=False, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr
    check_recovery(arguments, results, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("command", ["export", "report", "bench"])
def test_killed_at_random(command, number, digits_run, digits_export, certs, tmp_path):
    """At six moments of a run's length; an error line where there is time for one."""
    arguments, results = commands(digits_run, digits_export, certs, tmp_path)[command]
    program = [sys.executable, "-m", "smx_cli", *map(str, arguments)]
    begin = time.monotonic()
    subprocess.run(program, capture_output=True, check=True)
    length = time.monotonic() - begin
    for moment in range(6):
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(length * (moment + 0.5) / 6)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode in (0, -number, 5)
        assert process.returncode != 5 or err.rstrip().endswith("smx: error: stopped")
        for path in tmp_path.iterdir():
            assert path.name.startswith(".") or whole(path)
    check_recovery(arguments, results, tmp_path)


def test_what_the_dead_leave_is_swept(tmp_path):
    """Files and folders of processes that are gone, of this very name; nobody else's, and nothing of the living."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f".a.json.{gone.pid}.abcdefgh.json", f".b.json.{gone.pid}.abcdefgh.json", f".a.json.{os.getpid()}.abcdefgh.json",
                 ".a.json", ".a.json.bak", f".a.json.{gone.pid}.ABC"):  # fmt: skip
        (tmp_path / name).write_text("half")
    (tmp_path / f".a.json.{gone.pid}.abcdefg_").mkdir()
    locked = tmp_path / f".a.json.{gone.pid}.locked00.json"
    with open(locked, "w") as file:
        assert files._lock(file.fileno())  # as by a process of another container
        files.write_json(tmp_path / "a.json", {})
        assert locked.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.json", f".b.json.{gone.pid}.abcdefgh.json", f".a.json.{os.getpid()}.abcdefgh.json", ".a.json", ".a.json.bak",
        f".a.json.{gone.pid}.ABC", locked.name,
    }  # fmt: skip


@contextlib.contextmanager
def room(size):
    """Files can have at most `size` bytes, as on a disk that is full. Python ignores the signal that goes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("command", "size"), [("export", 10_000), ("report", 100), ("report", 40_000), ("bench", 100)])
def test_no_room(command, size, digits_run, digits_export, certs, tmp_path, capsys, monkeypatch):
    """One line, exit code 2, nothing left; with room again the command succeeds."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python 3.11 would keep half a .pyc
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    arguments, results = commands(digits_run, digits_export, certs, tmp_path)[command]
    with room(size):
        assert cli._run([str(word) for word in arguments], debug=False) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("smx: error: ")
    assert all(whole(path) for path in tmp_path.iterdir())
    check_recovery(arguments, results, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
@pytest.mark.parametrize("command", ["export", "report", "bench"])
def test_read_only_folder(command, digits_run, digits_export, certs, tmp_path):
    """Refused with the name of what cannot be written."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    arguments, _ = commands(digits_run, digits_export, certs, folder)[command]
    assert cli._run([str(word) for word in arguments], debug=False) == 2
    assert not list(folder.iterdir())


@pytest.mark.parametrize("command", ["export", "report", "bench"])
def test_a_file_in_the_folders_place(command, digits_run, digits_export, certs, tmp_path, capfd):
    """The same for everybody, root too."""
    (tmp_path / "file").write_text("x")
    arguments, _ = commands(digits_run, digits_export, certs, tmp_path / "file")[command]
    assert cli._run([str(word) for word in arguments], debug=False) == 2
    assert str(tmp_path / "file") in capfd.readouterr().err
    assert (tmp_path / "file").read_text() == "x"


def test_results_through_a_link_replace_the_link(certs, tmp_path):
    """And not what it points to: an output name that somebody else has made does not lead elsewhere."""
    (tmp_path / "precious").write_text("x")
    (tmp_path / "page.html").symlink_to(tmp_path / "precious")
    smx.report(certs, html=tmp_path / "page.html")
    assert (tmp_path / "precious").read_text() == "x"
    assert not (tmp_path / "page.html").is_symlink()
