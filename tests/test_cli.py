"""The command line's contract: streams, JSON, exit codes, what is imported when, and that the documents are true."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.engines import ENGINES, available

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
FUNCTIONS = {"import": "import_checkpoint"}


def run(*arguments):
    """The exit code of a command, in this process."""
    return cli._run([str(argument) for argument in arguments], debug=False)


def python(code):
    """Standard output of a new interpreter."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["smx_cli.main", "smoothmix_deploy", "smoothmix_deploy.errors"])
def test_start_up_imports_nothing_heavy(module):
    """So that `smx --help` answers at once."""
    heavy = {"torch", "numpy", "scipy", "onnx", "onnxruntime", "matplotlib", "sklearn", "PIL"}
    loaded = python(f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})").split()
    assert heavy.isdisjoint(loaded)


def test_statistics_import_no_torch():
    """Verifying and reporting need neither torch nor an engine."""
    code = (
        "import sys, smoothmix_deploy as smx; smx.verify, smx.report, smx.certify;"
        "import smoothmix_deploy.certification.verify, smoothmix_deploy.reporting.report;"
        "print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    assert python(code) == "False False"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_mirrors_a_function(name):
    """Same name, same options; what only prints (--json, --format of report) aside."""
    function = inspect.signature(getattr(smx, FUNCTIONS.get(name, name))).parameters
    options = {p.name for p in COMMANDS[name].params} - {"json"}
    only_printing = {"report": {"format"}}.get(name, set())
    names = set(function) - {"progress", "note", "hyper_parameters"}
    if name == "train":
        from smoothmix_deploy.training.recipes import hyper_parameter_names

        names |= set(hyper_parameter_names())
    assert options - only_printing == names


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    """One line on what it does."""
    assert run(name, "--help") == 0
    assert "Usage: smx" in capsys.readouterr().out
    assert len(COMMANDS[name].help) > 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("certify",), "Missing argument 'artefact'; see smx certify -h"),
        (("certify", "x", "--bogus"), "No such option: --bogus (Possible options: --out); see smx certify -h"),
        (("predicted",), "No such command 'predicted'"),
        (("verify", "a", "--rerun", "two"), "Invalid value for '--rerun'"),
    ],
)
def test_words_that_no_command_takes(words, said, capsys):
    """One line that names what is wrong and where to look, exit code 2."""
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert err.startswith(f"smx: error: {said}")


def test_defaults_are_the_same_in_both():
    """A default of the command line is the default of the function."""
    for name, command in COMMANDS.items():
        function = inspect.signature(getattr(smx, FUNCTIONS.get(name, name))).parameters
        for option in command.params:
            default = function.get(option.name)
            if default is None or default.default is inspect.Parameter.empty or option.name in ("json", "batch_sizes"):
                continue
            said = str(option.default) if option.default is not None and not option.multiple else default.default
            assert str(said) == str(default.default), (name, option.name)


def test_json_is_the_last_line_and_notes_are_elsewhere(digits_export, tmp_path, capsys):
    """certify, verify, report, predict: one object on stdout, remarks on stderr."""
    certs = tmp_path / "c.jsonl"
    for arguments, key in (
        (("certify", digits_export, "--n", 50, "--stop", 3, "--out", certs), "acr"),
        (("verify", certs, "--artefact", digits_export, "--rerun", 1), "valid"),
        (("report", certs), "files"),
        (("predict", digits_export, "--data", "digits", "--stop", 2, "--n", 50), "predictions"),
        (("recipes",), "recipes"),
        (("doctor",), "engines"),
    ):
        assert run(*arguments, "--json") == 0
        assert key in json.loads(capsys.readouterr().out.splitlines()[-1])
    assert run("certify", digits_export, "--n", 50, "--stop", 3, "--out", tmp_path / "d.jsonl") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "largest radius attainable" in err


def test_numbers_that_do_not_exist_are_null(tmp_path, digits_export, capsys):
    """JSON has no NaN: an unfinished file without certificates has no ACR."""
    certs = tmp_path / "c.jsonl"
    smx.certify(digits_export, n=50, stop=1, out=certs)
    certs.write_text(certs.read_text().splitlines()[0] + "\n")
    assert run("report", certs, "--json") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line, parse_constant=pytest.fail)["files"][0]["acr"] is None


def test_bench_of_all_engines(digits_run, digits_export, tmp_path, capsys, monkeypatch):
    """One row for each engine that runs the artefact, every field of the contract in it."""
    monkeypatch.delitem(ENGINES, "torch-compile")  # compiles for a minute
    arguments = (
        "--batch-sizes",
        "1,16",
        "--seconds",
        "0.05",
        "--out",
        tmp_path / "b.json",
        "--plot",
        tmp_path / "b.png",
    )
    assert run("bench", digits_run, digits_export, *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == json.loads((tmp_path / "b.json").read_text())
    assert {(r["engine"], r["batch_size"]) for r in found["results"]} == {
        (e, b) for e in ENGINES if available(e)[0] for b in (1, 16)
    }
    for row in found["results"]:
        assert row["iterations"] >= 10
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["throughput"] > 0 < row["end_to_end"]
        assert row["raw_share"] == pytest.approx(row["end_to_end"] / row["throughput"])
        assert {"artefact", "precision", "peak_memory_mb", "certified_per_second", "raw_share"} <= set(row)
        low, high = row["p50_interval"]
        assert low <= row["p50_ms"] <= high
    assert {(s["engine"], s["offline_batch_size"] in (1, 16)) for s in found["scenarios"]} == {
        (r["engine"], True) for r in found["results"]
    }
    assert found["environment"]["cores"] >= 1
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_doctor_explains_what_is_missing(monkeypatch):
    """A missing runtime is named with the extra that brings it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (state,) = (engine for engine in smx.doctor().engines if engine.name == "ort")
    assert state.version is None
    assert "smoothmix-deploy[cpu]" in state.reason


def readme_commands():
    """Every smx command line in the documents."""
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for path in texts for line in path.read_text().splitlines()]
    return [line.strip() for line in lines if re.match(r"^    (\./run\.sh )?smx ", line)]


@pytest.mark.parametrize("line", readme_commands())
def test_documented_commands_parse(line):
    """They name real commands and options."""
    words = shlex.split(line.removeprefix("./run.sh "))[1:]
    COMMANDS[words[0]].make_context(words[0], words[1:])


def test_documents_name_every_command():
    """The README's table is complete."""
    readme = (ROOT / "README.md").read_text()
    assert all(f"`smx {name}`" in readme for name in COMMANDS)


def test_architecture_page_names_every_module():
    """The annotated file tree is complete."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "smoothmix_deploy").rglob("*.py"):
        if path.name != "__init__.py":
            assert path.name in page, path


def test_every_package_is_in_the_wheel():
    """pyproject.toml lists packages by hand, because cli/ is installed under another name."""
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "smoothmix_deploy").rglob("__init__.py")}
    assert listed == found | {"smx_cli"}


@pytest.mark.slow
def test_readme_python(tmp_path, monkeypatch, capsys):
    """The five lines run as they stand."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "ACR" in capsys.readouterr().out


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    """The README's promise, in this environment."""
    assert run("demo", "--out", tmp_path / "demo", "--n", "1000", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    smoothmix, gaussian = found["report"]["files"]
    assert smoothmix["images"] == gaussian["images"] == 360
    assert smoothmix["acr"] > 0.3
    for name in ("certified-accuracy.png", "report.html", "bench.json", "report.md"):
        assert (tmp_path / "demo" / name).stat().st_size > 100
    assert run("demo", "--out", tmp_path / "demo") == 2
