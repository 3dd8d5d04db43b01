"""What is shipped: the wheel and the sdist, the lock file of CI, and no file that takes no lock."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = ROOT / ".ci" / "requirements.txt"


def python(*arguments, cwd=ROOT):
    """A new interpreter, which must succeed."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_locked_package_has_hashes():
    """pip refuses to install anything else with --require-hashes; every direct dependency is in the file."""
    entries = re.split(r"\n(?=\S)", LOCK.read_text())
    pinned = {e.partition("==")[0].partition("[")[0]: e for e in entries if "==" in e and not e.startswith("#")}
    assert all("--hash=sha256:" in entry for entry in pinned.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in (*project["dependencies"], *extras["cpu"], *extras["dev"]):
        assert re.match(r"[A-Za-z0-9-]+", wanted)[0] in pinned, f"{wanted}: run .ci/lock"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it alone."""
    pytest.importorskip("build", reason="the package `build` is not installed")
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", out)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.mark.slow
def test_wheel_and_sdist(built, tmp_path):
    """Two packages and nothing else at the top, templates inside, sources complete; the wheel runs where it is put."""
    wheel, source = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"smoothmix_deploy", "smx_cli"}
    assert "smoothmix_deploy/reporting/page.html" in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "smoothmix_deploy").rglob("*.py")}
    assert modules <= set(names)
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert modules | {"pyproject.toml", "README.md", "LICENSE", "cli/main.py"} <= inside
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel)
    where = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import smx_cli, smoothmix_deploy as s; "
    said = python(
        "-I", "-c", where + "print(s.__file__); from smx_cli.main import main; main(['--version'])", cwd=tmp_path
    )
    assert str(tmp_path / "site") in said


@pytest.mark.slow
def test_twine_has_nothing_to_say(built):
    """The long description renders on PyPI."""
    pytest.importorskip("twine", reason="twine is not installed")
    assert "PASSED" in python("-m", "twine", "check", "--strict", *built)
