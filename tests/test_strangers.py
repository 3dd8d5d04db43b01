"""What the corpus cannot say of strangers' files: consent, what is accepted all the same, and limits set low for a test."""

import io
import json
import signal
import sys

import numpy as np
import onnx
import pytest
import typer
from bad_files import IMAGES, SCORES, WEIGHTS, altered
from hostile_files import ESCAPES
from onnx import TensorProto, helper
from onnx_models import save
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.certificates import reading
from smoothmix_deploy.data import load, load_data
from smoothmix_deploy.engines import open_engine, trial
from smoothmix_deploy.models import build

NETWORK = """
from pathlib import Path
from smoothmix_deploy.models.lenet import DigitsNet

Path(__file__).with_name("was-imported").touch()

def make(num_classes):
    return DigitsNet(num_classes)
"""


@pytest.fixture
def code_run(digits_run, tmp_path, monkeypatch):
    """A run folder whose network is a module beside it, and nothing consented to."""
    (tmp_path / "their_network.py").write_text(NETWORK)
    altered(digits_run, tmp_path / "run", "config.json", {"arch": "their_network:make"})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(build, "_consented", set())
    monkeypatch.delenv(build.TRUST_CODE, raising=False)
    sys.modules.pop("their_network", None)
    return tmp_path / "run"


@pytest.mark.parametrize("trusted", [None, "", "other:make", "their_network"])
def test_code_is_not_imported_without_consent(trusted, code_run, monkeypatch):
    """Neither by opening nor by exporting; consent to something else is none."""
    if trusted is not None:
        monkeypatch.setenv(build.TRUST_CODE, trusted)
    for use in (
        lambda: open_engine(open_artefact(code_run), "torch"),
        lambda: smx.export(code_run, out=code_run.parent / "e"),
    ):
        with pytest.raises(smx.BadInput, match="--trust-code"):
            use()
    assert not (code_run.parent / "was-imported").exists()
    assert not (code_run.parent / "e").exists()


def test_consent_by_environment(code_run, monkeypatch):
    """By name."""
    monkeypatch.setenv(build.TRUST_CODE, "other:make,their_network:make")
    assert open_engine(open_artefact(code_run), "torch").info.num_classes == 10


def test_consent_by_option(code_run, monkeypatch, capsys):
    """For everything, and for one command; it may stand anywhere."""
    monkeypatch.setenv(build.TRUST_CODE, "")  # restored afterwards
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(code_run), "--data", "digits", "--stop", "1", "--n", "50", "--trust-code"])
    assert ended.value.code == 0
    assert "prediction" in capsys.readouterr().out


def test_naming_code_oneself_is_consent(code_run):
    """Who has just trained a network of his own need not say it twice."""
    trained = smx.train(
        data="digits", arch="their_network:make", epochs=1, stop=64, sigma=0.25, out=code_run.parent / "own"
    )
    assert open_engine(open_artefact(trained.path), "torch").info.num_classes == 10


def test_names_in_files_do_not_steer_the_terminal(digits_export, tmp_path, capfd):
    """Tables spell out what is no text; JSON has it as it is."""
    altered(digits_export, tmp_path / "e", "manifest.json", {"class_names": [f"{ESCAPES}{k}" for k in range(10)]})
    words = ["predict", str(tmp_path / "e"), "--data", "digits", "--stop", "2", "--n", "50"]
    assert cli._run(words, debug=False) == 0
    out, err = capfd.readouterr()
    assert "\\x1b[31mred" in out
    assert len(out.splitlines()) == 3
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert cli._run([*words, "--json"], debug=False) == 0
    assert json.loads(capfd.readouterr().out)["predictions"][0]["class_name"].startswith(ESCAPES)


def test_a_terminal_without_the_letters(digits_export, tmp_path, monkeypatch):
    """An ASCII terminal gets class names spelled out, not an error."""
    altered(
        digits_export,
        tmp_path / "e",
        "manifest.json",
        {"class_names": [f"d\u00e9j\u00e0 \u732b {k}" for k in range(10)]},
    )
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # main's, not the tests'
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["predict", str(tmp_path / "e"), "--data", "digits", "--stop", "1", "--n", "50"])
    assert b"\\u732b" in sys.stdout.buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["a$b$.jsonl", "_a.jsonl", "a\nb.jsonl", "a|b&c\\d.jsonl", "\udcff.jsonl", "<b>.jsonl"]
)
def test_names_of_files_in_reports(name, certs, tmp_path):
    """Formulas, marks of tables, markup and bytes that are no text."""
    (tmp_path / name).write_bytes(certs.read_bytes())
    result = smx.report(tmp_path / name, html=tmp_path / "p.html")
    for format in ("table", "markdown", "latex", "csv"):
        assert len(result.table(format).encode().splitlines()) <= 9
    page = (tmp_path / "p.html").read_text()
    assert "<b>" not in page


def test_weights_in_other_files_are_taken_in(digits_export, tmp_path):
    """`--allow-external-data`: the export has them inside and votes alike; without it nothing is read."""
    model = onnx.load(digits_export / "model.onnx")
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(smx.BadInput, match="--allow-external-data"):
        smx.export(tmp_path / "in" / "m.onnx", out=tmp_path / "out", sigma=0.25)
    made = smx.export(tmp_path / "in" / "m.onnx", out=tmp_path / "out", sigma=0.25, allow_external_data=True)
    assert any("put inside" in text for text in made.assumptions)
    x = np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)
    expected, found = (open_engine(open_artefact(p), "ort", batch_size=8).logits(x) for p in (digits_export, made.path))
    assert np.array_equal(expected, found)


def test_a_network_that_never_ends(tmp_path, monkeypatch):
    """The child is ended, in place of our own process."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["h"], ["g"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("h", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("g", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [*SCORES[:1], helper.make_node("Gemm", ["flat", "w", "b"], ["s"], transB=1),
             helper.make_node("Loop", ["times", "yes", "s"], ["y"], body=body)]  # fmt: skip
    stored = [*WEIGHTS, ("times", np.array(2**62)), ("yes", np.array(True))]
    file = save(tmp_path / "loop.onnx", nodes, stored, inputs=IMAGES, output_shape=("batch", 10))
    monkeypatch.setattr(trial, "_SECONDS", 3)
    with pytest.raises(smx.BadInput, match="not done loading it after 3 s"):
        open_engine(open_artefact(file), "ort", batch_size=8)


def test_limits_of_size(certs, tmp_path, monkeypatch):
    """Set low, as files that reach them would take minutes to write."""
    monkeypatch.setattr(reading, "_LONGEST_LINE", 100)
    with pytest.raises(smx.BadInput, match=r"line 1: not JSON \(a line of"):
        smx.report(certs)
    monkeypatch.setattr(reading, "_LARGEST", 1000)
    with pytest.raises(smx.BadInput, match="not a certificate file"):
        smx.report(certs)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((2000, 32, 32), np.uint8), y=np.zeros(2000, int))
    assert len(load_data(f"npz:{tmp_path / 'x.npz'}")) == 2000
    monkeypatch.setattr(load, "_BOMB", 1 << 20)
    with pytest.raises(smx.BadInput, match="decompression bomb"):
        load_data(f"npz:{tmp_path / 'x.npz'}")


def test_every_command_says_how_to_trust():
    """`smx --help` has the option."""
    assert "trust_code" in {option.name for option in typer.main.get_command(cli.app).params}
