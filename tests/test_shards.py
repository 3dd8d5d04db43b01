"""Shards: runs of their own, merged into the file of one run; and the batch that shrinks before anything is counted."""

import json

import numpy as np
import pytest
from smx_cli import main as cli
from test_workers import RULES, certify, planes, records  # noqa: F401 - a fixture

import smoothmix_deploy as smx
from smoothmix_deploy.certification import opening


@pytest.fixture(scope="module")
def shards(planes, tmp_path_factory):  # noqa: F811
    """(the file of one run, those of its three shards), with one error for all images together."""
    folder = tmp_path_factory.mktemp("shards")
    options = {**RULES["radius"], "start": 3, "skip": 2, "stop": 30, "alpha_family": 0.01, "n": 3000}
    one = certify(planes, folder / "one.jsonl", **options).path
    parts = [certify(planes, folder / f"{i}.jsonl", shard=f"{i}/3", **options).path for i in range(3)]
    return one, parts


def test_merged_shards_are_the_file_of_one_run(shards, tmp_path):
    """Line for line, manifest included, in any order of the files; shards verify by themselves."""
    one, parts = shards
    result = smx.merge(parts[::-1], out=tmp_path / "m.jsonl")
    assert records(tmp_path / "m.jsonl")[1:] == records(one)[1:]
    merged, whole = records(tmp_path / "m.jsonl")[0], records(one)[0]
    assert {k for k in whole if merged[k] != whole[k]} <= {"self_test"}  # of the first shard's images
    assert result.missing == []
    for path in (*parts, tmp_path / "m.jsonl"):
        smx.verify(path)


def test_missing_and_doubled_shards(shards, tmp_path, capfd):
    """Named; with --partial the rest is written, and verifies."""
    _, parts = shards
    out = tmp_path / "m.jsonl"
    assert cli._run(["merge", str(parts[0]), str(parts[2]), "--out", str(out)], debug=False) == 3
    assert "5, 11, 17, 23, 29; not given: shard 1/3" in capfd.readouterr().err
    assert cli._run(["merge", str(parts[0]), str(parts[0]), "--out", str(out)], debug=False) == 2
    assert "is shard 0/3, and so is" in capfd.readouterr().err
    assert not out.exists()
    assert cli._run(["merge", str(parts[0]), str(parts[2]), "--partial", "--out", str(out), "--json"], debug=False) == 0
    assert json.loads(capfd.readouterr().out)["missing"] == [5, 11, 17, 23, 29]
    checked = smx.verify(out)
    assert (checked.certificates, checked.expected_images) == (9, 14)
    for command in (["verify", str(out)], ["report", str(out)]):
        assert cli._run(command, debug=False) == 0
        assert f"{out}: 9 of 14 selected images" in capfd.readouterr().err
    page = smx.certificate(out, out=tmp_path / "m.html").read_text()
    assert "9 images of" in page
    assert "of 14 selected" in page
    assert cli._run(["merge", str(parts[0]), "--out", str(out)], debug=False) == 2
    assert "exists" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [({"key": "0" * 32}, "has key 0"), ({"n": 9}, "has n 9"), ({"data": {"digest": "x"}}, "data digest x"),
     ({"engine": {"batch_size": 8}}, "engine batch_size 8"), ({"engine": {"name": "trt", "version": "1"}}, "engine name trt"), ({"data": {"shard": "1/4"}}, "impossible manifest"),
     ({"data": {"shard": None}}, "is no shard")],
)  # fmt: skip
def test_files_of_other_runs_are_refused(change, said, shards, tmp_path):
    """The first difference is named."""
    _, parts = shards
    lines = parts[1].read_text().splitlines()
    manifest = json.loads(lines[0])
    for name, value in change.items():
        manifest[name] = {**manifest[name], **value} if isinstance(value, dict) else value
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([json.dumps(manifest), *lines[1:]]) + "\n")
    with pytest.raises(smx.BadInput, match=said):
        smx.merge([parts[0], other, parts[2]], out=tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"shard": "3/3"}, "must be i/k"), ({"shard": "a"}, "must be i/k"), ({"shard": "0/2", "seed": None}, "needs --seed"),
     ({"shard": "30/40"}, "this shard has none")],
)  # fmt: skip
def test_impossible_shards(options, said, planes, tmp_path):  # noqa: F811
    """One line; no file."""
    with pytest.raises(smx.BadInput, match=said):
        certify(planes, tmp_path / "c.jsonl", **options)
    assert not (tmp_path / "c.jsonl").exists()


def test_batches_are_halved_before_anything_is_counted(planes, tmp_path, monkeypatch):  # noqa: F811
    """The file is the one of the smaller batch, and states it; a file that was begun keeps its batch, or stops."""
    most = 16
    test = opening.self_test

    def little_memory(engine, *arguments, **named):
        if engine.info.batch_size > most:
            raise RuntimeError("CUDA error: out of memory")
        return test(engine, *arguments, **named)

    monkeypatch.setattr(opening, "self_test", little_memory)
    notes = []
    certify(planes, tmp_path / "c.jsonl", batch_size=64, note=notes.append)
    assert [note for note in notes if "out of memory" in note] == [
        "out of memory with batches of 64: trying 32",
        "out of memory with batches of 32: trying 16",
    ]
    assert records(tmp_path / "c.jsonl")[0]["engine"]["batch_size"] == 16
    most = 4
    with pytest.raises(smx.Stopped, match="out of memory with batches of 16"):
        certify(planes, tmp_path / "c.jsonl", batch_size=None, resume=True)


def test_an_engine_that_fails_on_the_way_stops_the_run(planes, tmp_path, monkeypatch):  # noqa: F811
    """A GPU that is lost: 5, the votes kept; resumed, the same lines."""
    from smoothmix_deploy.engines.ort import OrtEngine

    certify(planes, tmp_path / "one.jsonl")
    logits, calls = OrtEngine.logits, 0

    def fail(self, x):
        nonlocal calls
        calls += 1
        if calls > 500:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return logits(self, np.asarray(x))

    monkeypatch.setattr(OrtEngine, "logits", fail)
    out = tmp_path / "c.jsonl"
    with pytest.raises(smx.Stopped, match=r"failed while sampling: CUDA error.*--resume"):
        certify(planes, out)
    monkeypatch.undo()
    assert 1 < len(records(out)) < 31
    assert (tmp_path / "c.jsonl.partial").exists()
    certify(planes, out, resume=True)
    assert records(out) == records(tmp_path / "one.jsonl")
