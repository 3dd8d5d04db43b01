"""Everything in the corpus is one clear line on stderr, with the promised exit code, and nothing is left behind."""

import subprocess
import sys
from collections import Counter

import pytest
import typer
from corpus import CORPUS
from corpus_run import check_error, refused, words_of
from smx_cli import main as cli

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
LINES = [*CORPUS, *[(f"{name} --no-such-option", 2, "No such option: --no-such-option") for name in COMMANDS]]
SAMPLE = 12


def test_size_of_the_corpus():
    """At least 300 different lines, several for each command that reads anything."""
    assert len({line for line, _, _ in LINES}) == len(LINES) >= 300
    of = Counter(line.split()[0] for line, _, _ in CORPUS)
    assert all(
        of[name] >= 5
        for name in ("train", "import", "export", "certify", "predict", "report", "verify", "audit", "bench")
    )


@pytest.mark.parametrize(("line", "code", "words"), LINES, ids=range(len(LINES)))
def test_refused(line, code, words, places, tmp_path, capfd, monkeypatch):
    """In this process: a crash would end the tests, a hang is seen by whoever waits for them."""
    monkeypatch.chdir(tmp_path)
    refused(line, code, words, places=places, cwd=tmp_path, capfd=capfd)


@pytest.mark.slow
@pytest.mark.parametrize(("line", "code", "words"), LINES[:: len(LINES) // SAMPLE])
def test_refused_in_a_process_of_its_own(line, code, words, places, tmp_path):
    """The same through the real entry point."""
    command = [sys.executable, "-m", "smx_cli", *words_of(line, places)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
    assert (found.returncode, found.stdout) == (code, "")
    check_error(found.stderr, words)
    assert not list(tmp_path.iterdir())
