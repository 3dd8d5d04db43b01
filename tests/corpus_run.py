"""Runs a line of the corpus and checks everything that is promised of a refusal."""

from smx_cli import main as cli


def tree(folder):
    """Every path below a folder."""
    return {path.relative_to(folder) for path in folder.rglob("*")}


def words_of(line, places):
    """The arguments of a command line; upper-case names are replaced by what `places` has for them, '' by nothing."""
    words = []
    for word in line.split():
        for name, path in places.items():
            word = word.replace(name, str(path))
        words.append("" if word == "''" else word)
    return words


def check_error(err, words):
    """One error line, at the end, that nothing in a file can dress up; with `words` in it."""
    assert "Traceback" not in err
    assert all(c.isprintable() or c == "\n" for c in err)
    lines = [line for line in err.splitlines() if line.startswith("smx: error: ")]
    assert len(lines) == 1
    assert err.rstrip().endswith(lines[0])
    assert "a defect of smx" not in err
    for word in words if isinstance(words, tuple) else (words,):
        assert word in lines[0]


def refused(line, code, words, *, places, cwd, capfd):
    """In this process, in the empty folder `cwd`."""
    before = {name: tree(path) for name, path in places.items()}
    found = cli._run(words_of(line, places), debug=False)
    out, err = capfd.readouterr()
    assert found == code, err
    assert out == ""
    check_error(err, words)
    assert {name: tree(path) for name, path in places.items()} == before
    assert not [path for path in cwd.rglob("*") if path.suffix == ".jsonl" or path.name.startswith(".")]
    assert not (cwd / "code-was-run").exists()
