"""What the corpus cannot say: what a refused command leaves behind, and what looks wrong but is right."""

import json
import shutil
from pathlib import Path

import pytest
from corpus_run import tree
from smx_cli import main as cli


@pytest.mark.parametrize("options", ["--method nope", "--momentum -1"])
def test_a_refused_training_leaves_no_run_folder(options, tmp_path):
    """So that the corrected command is not told that the folder is taken."""
    assert (
        cli._run(["train", "--data", "digits", "--epochs", "1", "--out", str(tmp_path / "r"), *options.split()], False)
        > 0
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["state-cut", "state-zero"])
def test_damaged_training_state(name, files, digits_run, tmp_path, capfd):
    """Named, and nothing is overwritten."""
    shutil.copytree(files / name, tmp_path / "r")
    settings = json.loads((digits_run / "config.json").read_text())["hyper_parameters"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    arguments = ["train", "--data", "digits", "--method", "gaussian", "--epochs", str(settings["epochs"]), "--resume"]
    assert cli._run([*arguments, "--out", str(tmp_path / "r")], debug=False) == 2
    assert "state.pt: not a readable training state" in capfd.readouterr().err
    after = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    del before["config.json"], after["config.json"]
    assert after == before


@pytest.mark.parametrize(
    "arguments",
    [
        "certify {files}/good.onnx --sigma 0.25 --data digits --stop 2 --n 100",
        "certify {files}/fixed-batch.onnx --sigma 0.25 --data digits --stop 2 --n 100",
        "certify {files}/export-max-batch --stop 2 --n 100",
        "certify {export} --data npz:{files}/good.npz --stop 2 --n 100 --batch-size 1",
        "certify {export} --data folder:{files}/pictures --stop 2 --n 100 --start 1 --skip 999",
        "certify {export} --stop 2 --n 10",
    ],
)
def test_unusual_but_right(arguments, files, digits_export, tmp_path, capfd, monkeypatch):
    """Fixed and small batches, foreign models and sets, the fewest samples that can certify."""
    monkeypatch.chdir(tmp_path)
    words = arguments.format(files=files, export=digits_export).split()
    assert cli._run([*words, "--json", "--out", "c.jsonl"], debug=False) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["images"] in (1, 2)
    assert tree(tmp_path) == {Path("c.jsonl")}


def test_debug_shows_the_traceback():
    """And without it there is none: see above."""
    with pytest.raises(ValueError, match="no such file"):
        cli._run(["certify", "nope"], debug=True)


@pytest.mark.parametrize("name", ["text", "good.npz"])
def test_resuming_a_foreign_file_leaves_it_alone(name, files, digits_export, tmp_path, capfd):
    """A file without a line end is not taken for one that was killed in its first line."""
    shutil.copy(files / name, tmp_path / name)
    assert (
        cli._run(["certify", str(digits_export), "--n", "100", "--resume", "--out", str(tmp_path / name)], False) == 2
    )
    assert (tmp_path / name).read_bytes() == (files / name).read_bytes()
