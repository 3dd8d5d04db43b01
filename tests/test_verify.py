"""`smx verify` names every line that does not follow from its votes."""

import json

import numpy as np
import pytest
from smx_cli import main as cli

import smoothmix_deploy as smx

LINE = 3
"""The line that is edited; line 1 is the manifest."""


@pytest.fixture(scope="module")
def certified(digits_export, tmp_path_factory):
    """The lines of a good file: 8 images."""
    out = tmp_path_factory.mktemp("certified") / "c.jsonl"
    smx.certify(digits_export, n=500, stop=8, seed=1, batch_size=64, out=out)
    lines = out.read_text().splitlines()
    record = json.loads(lines[LINE - 1])
    assert record["prediction"] >= 0
    assert len(record["counts"]) > 1
    return lines


@pytest.fixture
def verify(tmp_path, capfd):
    """Exit code, standard output and error of verifying these lines."""

    def run(lines, *arguments, end="\n"):
        (tmp_path / "x.jsonl").write_bytes(("\n".join(lines) + end).encode())
        capfd.readouterr()
        code = cli._run(["verify", str(tmp_path / "x.jsonl"), *map(str, arguments)], debug=False)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def rejected(verify):
    """Exit code 3, one line on stderr that names the line of the file."""

    def run(lines, line, *arguments, end="\n"):
        code, out, err = verify(lines, *arguments, end=end)
        assert code == 3, (out, err)
        assert out == ""
        assert err.startswith("smx: error: ")
        assert err.count("\n") == 1
        assert f"x.jsonl, line {line}:" in err.replace(" (image", ": (image")
        return err

    return run


def edited(lines, line=LINE, *, without=None, **values):
    """The file with one line changed."""
    record = {**json.loads(lines[line - 1]), **values}
    record.pop(without, None)
    return [*lines[: line - 1], json.dumps(record), *lines[line:]]


def votes(lines, **by):
    """The counts of the edited line, with some classes changed by so many votes."""
    counts = json.loads(lines[LINE - 1])["counts"]
    return {**counts, **{k.removeprefix("k"): counts.get(k.removeprefix("k"), 0) + v for k, v in by.items()}}


def test_good_file(certified, verify, digits_run, digits_export):
    """As written: 0, also with the artefact and votes drawn again, on the same engine and on another."""
    assert verify(certified)[0] == 0
    for arguments in (
        ("--artefact", digits_export),
        ("--artefact", digits_export, "--rerun", 3, "--seed", 0),
        ("--artefact", digits_run, "--engine", "torch", "--rerun", 2, "--seed", 0),
    ):
        code, out, _ = verify(certified, *arguments, "--json")
        assert code == 0
        assert json.loads(out.splitlines()[-1])["valid"] is True


def test_unfinished_file_is_valid_and_said_to_be_unfinished(certified, verify):
    """Fewer images than the manifest selects, down to none."""
    for count in (1, 2, 5):
        code, out, err = verify(certified[:count], "--json")
        assert code == 0
        assert json.loads(out.splitlines()[-1])["certificates"] == count - 1
        assert f"{count - 1} of 8 selected images" in err


FIELDS = [
    "index", "label", "prediction", "radius", "correct", "n", "selection_counts", "counts", "p_lower", "seconds", "kind"
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field(field, certified, rejected):
    """Every field is needed."""
    assert f'"{field}"' in rejected(edited(certified, without=field), LINE)


@pytest.mark.parametrize("value", [None, "x", [], {"x": 1}, -5], ids=str)
@pytest.mark.parametrize("field", FIELDS)
def test_impossible_value(field, value, certified, rejected):
    """Of another type, or out of range."""
    rejected(edited(certified, **{field: value}), LINE)


@pytest.mark.parametrize("field", ["index", "label", "prediction", "n"])
@pytest.mark.parametrize("value", [True, 1.5, 99, 10**30], ids=str)
def test_wrong_integer(field, value, certified, rejected):
    """Not a whole number, or not one that can be."""
    rejected(edited(certified, **{field: value}), LINE)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", '"0.5"', "true"])
@pytest.mark.parametrize("field", ["radius", "p_lower"])
def test_numbers_that_are_none(field, text, certified, rejected):
    """JSON has no NaN; 1e400 is infinite."""
    record = json.loads(certified[LINE - 1])
    line = certified[LINE - 1].replace(f'"{field}": {record[field]!r}', f'"{field}": {text}')
    assert line != certified[LINE - 1]
    rejected([*certified[: LINE - 1], line, *certified[LINE:]], LINE)


@pytest.mark.parametrize("factor", [1 + 1e-6, 1 - 1e-6, 1.1, 2, 0])
@pytest.mark.parametrize("field", ["radius", "p_lower"])
def test_numbers_that_the_votes_do_not_give(field, factor, certified, rejected):
    """In either direction, however little."""
    value = json.loads(certified[LINE - 1])[field]
    assert "but the counts give" in rejected(edited(certified, **{field: value * factor}), LINE)


def test_votes_changed(certified, rejected):
    """One vote more or less for the class changes its radius; impossible votes are named as such."""
    top = str(json.loads(certified[LINE - 1])["prediction"])
    for counts in (votes(certified, **{f"k{top}": 1}), votes(certified, **{f"k{top}": -1}), {}):
        rejected(edited(certified, counts=counts), LINE)
    for counts in (
        votes(certified, k3=10_000),
        {"10": 5},
        {"-1": 5},
        {"x": 5},
        {"1": 5.0},
        {"1": True},
        {" 1": 5},
        {"²": 5},
    ):
        rejected(edited(certified, counts=counts), LINE)
        rejected(edited(certified, selection_counts=counts), LINE)
    rejected(edited(certified, selection_counts={}), LINE)


@pytest.mark.parametrize("n", [499, 501, 0, 1])
def test_sample_number_changed(n, certified, rejected):
    """The rule decides at 500."""
    rejected(edited(certified, n=n), LINE)


def test_prediction_label_and_correct(certified, rejected):
    """They must fit each other and the votes."""
    record = json.loads(certified[LINE - 1])
    rejected(edited(certified, prediction=(record["prediction"] + 1) % 10), LINE)
    rejected(edited(certified, prediction=-1, radius=0.0, correct=False), LINE)
    rejected(edited(certified, correct=not record["correct"]), LINE)
    rejected(edited(certified, label=99), LINE)


def test_lines_moved(certified, rejected):
    """Out of order, twice, left out, too many."""
    first, *rest = certified
    rejected([first, rest[0], rest[2], rest[1], *rest[3:]], 3)
    rejected([first, rest[0], rest[1], rest[0], *rest[2:]], 4)
    rejected([first, *rest[1:]], 2)
    rejected([*certified, rest[-1].replace('"index": 7', '"index": 8')], 10)
    rejected([first, first, *rest], 2)
    rejected(rest, 1)


BROKEN = ["", "junk", "[1]", "{}", "null", "\0" * 50, "[" * 100_000, '{"n": ' + "9" * 5000 + "}", "\ufeff{}"]


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_lines_that_are_none(line, certified, rejected):
    """Between good ones."""
    rejected([*certified[: LINE - 1], line, *certified[LINE - 1 :]], LINE)


def test_line_cut_off(certified, rejected):
    """Every line must end."""
    rejected(certified, 9, end="")
    rejected([*certified[: LINE - 1], certified[LINE - 1][:50]], LINE, end="")
    rejected([certified[0][:50]], 1, end="")
    rejected([], 1, end="")


@pytest.mark.parametrize(
    "values",
    [
        {"sigma": 0}, {"sigma": -1}, {"sigma": "x"}, {"sigma": None}, {"alpha": 0}, {"alpha": 1}, {"n": 0}, {"n": 1.5},
        {"rule": "nope"}, {"rule_parameters": {"x": 1}}, {"rule_parameters": []}, {"data": {}}, {"format_version": 2},
        {"kind": "x"}, {"class_names": "x"}, {"seed": "x"}, {"key": 5}, {"artefact": []}, {"versions": None},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_manifest(values, certified, rejected):
    """Line 1 is named."""
    rejected(edited(certified, 1, **values), 1)


@pytest.mark.parametrize("field", ["sigma", "alpha", "n0", "n", "rule", "noise", "key", "artefact", "engine", "data"])
def test_manifest_incomplete(field, certified, rejected):
    """Line 1 is named."""
    assert f'"{field}"' in rejected(edited(certified, 1, without=field), 1)


@pytest.mark.parametrize(
    "values", [{"sigma": 0.5}, {"alpha": 0.01}, {"n": 1000}, {"n0": 5}, {"num_classes": 2}], ids=str
)
def test_manifest_that_does_not_fit_its_lines(values, certified, rejected):
    """The first line that no longer follows is named."""
    rejected(edited(certified, 1, **values), 2)


def test_selection_that_does_not_fit_its_lines(certified, rejected):
    """Start, stop and skip say which images there are."""
    data = json.loads(certified[0])["data"]
    rejected(edited(certified, 1, data={**data, "start": 1}), 2)
    rejected(edited(certified, 1, data={**data, "skip": 2}), 3)
    rejected(edited(certified, 1, data={**data, "stop": 4}), 6)
    rejected(edited(certified, 1, data={**data, "skip": 0}), 1)
    rejected(edited(certified, 1, data={**data, "start": "x"}), 1)


def test_another_artefact(certified, rejected, digits_run, digits_export, tmp_path):
    """Digests, not names."""
    manifest = json.loads(certified[0])
    for changed in ({"sha256": "0" * 64}, {"sha256": None, "weights_sha256": None}):
        artefact = {**manifest["artefact"], **changed}
        rejected(edited(certified, 1, artefact=artefact), 1, "--artefact", digits_export)
    rejected(certified, 1, "--artefact", digits_run)


def test_votes_that_were_never_cast(certified, rejected, digits_export):
    """A line that follows from its own invented votes is found by sampling again; so is another key."""
    from smoothmix_deploy.rules import make_rule

    manifest, record = json.loads(certified[0]), json.loads(certified[LINE - 1])
    counts = np.zeros(10, int)
    counts[record["prediction"]] = manifest["n"]
    rule = make_rule("fixed", sigma=manifest["sigma"], n=manifest["n"], alpha=manifest["alpha"])
    verdict = rule.decide(counts, counts, manifest["n"])
    invented = {
        "counts": {str(record["prediction"]): manifest["n"]},
        "radius": verdict.radius,
        "p_lower": verdict.p_lower,
    }
    lines = edited(certified, **invented)
    assert "sampling again" in rejected(lines, LINE, "--artefact", digits_export, "--rerun", 8)
    rejected(edited(certified, 1, key="0" * 32), 2, "--artefact", digits_export, "--rerun", 8)


def test_rerun_needs_what_it_needs(certified, verify, digits_export):
    """Usage errors are 2, other data is 3, no GPU is 4."""
    assert verify(certified, "--rerun", 2)[0] == 2
    assert verify(certified, "--rerun", -1)[0] == 2
    assert verify(certified, "--artefact", "nope")[0] == 2
    assert verify(certified, "--artefact", digits_export, "--rerun", 1, "--engine", "nope")[0] == 2
    assert verify(certified, "--artefact", digits_export, "--rerun", 1, "--device", "cuda")[0] == 4
    data = {**json.loads(certified[0])["data"], "digest": "0" * 64}
    code, _, err = verify(edited(certified, 1, data=data), "--artefact", digits_export, "--rerun", 1)
    assert (code, "digest differs" in err) == (3, True)


def test_forged_labels(certified, rejected, digits_export):
    """Labels are in the data set's digest: with the data at hand, a false one is named."""
    record = json.loads(certified[LINE - 1])
    lines = edited(certified, label=(record["label"] + 1) % 10, correct=False)
    rejected(lines, LINE, "--artefact", digits_export, "--rerun", 8)


@pytest.mark.parametrize("key", ["9" * 5000, "01"], ids=["long", "01"])
def test_strange_class_names(key, certified, rejected):
    """A class is written one way only, and no name is too long to refuse."""
    rejected(edited(certified, counts={**votes(certified), key: 0}), LINE)


def test_field_twice(certified, rejected):
    """Readers differ in which one they take."""
    line = certified[LINE - 1].replace('"radius"', '"radius": 9.0, "radius"')
    rejected([*certified[: LINE - 1], line, *certified[LINE:]], LINE)


@pytest.mark.parametrize(
    "values", [{"num_classes": 10**30}, {"noise": "x"}, {"generator": "x"}, {"key": "zz"}, {"engine": {}}], ids=str
)
def test_manifest_nonsense(values, certified, rejected):
    """Line 1 is named, without an artefact too."""
    rejected(edited(certified, 1, **values), 1)


def test_selection_without_end(certified, rejected):
    """More images than there are."""
    data = {**json.loads(certified[0])["data"], "stop": 10**30}
    rejected(edited(certified, 1, data=data), 1)


@pytest.mark.parametrize(
    ("part", "values"),
    [("data", {"name": 5}), ("data", {"split": 5}), ("engine", {"name": 5}), ("engine", {"batch_size": "x"}),
     ("engine", {"batch_size": 0})],
    ids=str,
)  # fmt: skip
def test_manifest_nonsense_on_rerun(part, values, certified, rejected, digits_export):
    """What the file says is checked as what the user says."""
    lines = edited(certified, 1, **{part: {**json.loads(certified[0])[part], **values}})
    rejected(lines, 1, "--artefact", digits_export, "--rerun", 1)


def test_classes_that_the_model_does_not_have(certified, rejected, digits_export):
    """The artefact is at hand: it has ten."""
    rejected(edited(certified, 1, num_classes=11), 1, "--artefact", digits_export, "--rerun", 1)


def inflated(lines, numbers, votes):
    """The file with so many votes moved to the class of each of these lines, and all that follows from them."""
    from smoothmix_deploy.rules import make_rule

    manifest = json.loads(lines[0])
    rule = make_rule("fixed", sigma=manifest["sigma"], n=manifest["n"], alpha=manifest["alpha"])
    changed = list(lines)
    for number in numbers:
        record = json.loads(lines[number - 1])
        top, counts = str(record["prediction"]), dict(record["counts"])
        for _ in range(votes):
            other = max((k for k in counts if k != top), key=counts.get, default=None)
            if other is not None and counts[other] > 0:
                counts[other] -= 1
                counts[top] += 1
        dense, chosen = np.zeros(10, int), np.zeros(10, int)
        for k, v in counts.items():
            dense[int(k)] = v
        chosen[int(top)] = 1
        verdict = rule.decide(chosen, dense, manifest["n"])
        record |= {"counts": counts, "radius": verdict.radius, "p_lower": verdict.p_lower}
        changed[number - 1] = json.dumps(record)
    return changed


@pytest.fixture(scope="module")
def noisy(digits_export, tmp_path_factory):
    """The lines of a good file of 40 images at so much noise that no vote is unanimous."""
    out = tmp_path_factory.mktemp("noisy") / "c.jsonl"
    smx.certify(digits_export, n=2000, stop=40, sigma=0.5, seed=1, batch_size=64, out=out)
    return out.read_text().splitlines()


@pytest.mark.parametrize("fresh", [False, True], ids=["another engine", "fresh noise"])
def test_honest_votes_are_consistent(noisy, verify, digits_run, digits_export, fresh):
    """With noise of their own, on every image."""
    how = ("--artefact", digits_export, "--fresh") if fresh else ("--artefact", digits_run, "--engine", "torch")
    for seed in range(2):
        assert verify(noisy, *how, "--rerun", 40, "--seed", seed)[0] == 0


def test_one_inflated_image_is_named(noisy, rejected, digits_run, digits_export):
    """On another engine, and on the same one with fresh noise."""
    records = [json.loads(line) for line in noisy]
    line = next(
        i for i in range(2, 42) if records[i - 1]["prediction"] >= 0 and max(records[i - 1]["counts"].values()) < 1700
    )
    lines = inflated(noisy, [line], 200)
    for how in (("--artefact", digits_run, "--engine", "torch"), ("--artefact", digits_export, "--fresh")):
        assert "not the votes of one classifier" in rejected(lines, line, *how, "--rerun", 40, "--seed", 0)


def test_many_images_inflated_a_little(noisy, verify, digits_run):
    """Too little for a test of one image, not for that of all."""
    certified = [i for i in range(2, 42) if json.loads(noisy[i - 1])["prediction"] >= 0]
    lines = inflated(noisy, certified, 40)
    assert verify(lines)[0] == 0
    code, _, err = verify(lines, "--artefact", digits_run, "--engine", "torch", "--rerun", 40, "--seed", 0)
    assert (code, "too many together" in err) == (3, True), err


@pytest.mark.parametrize("rule", ["radius", "grid", "anytime"])
def test_sequential_votes_are_consistent(rule, verify, digits_run, digits_export, tmp_path):
    """They stop where votes are high, honestly: the level allows for every look."""
    option = {"radius": {"radius": 0.25}, "grid": {"grid": 0.25}, "anytime": {"tolerance": 0.1}}[rule]
    out = tmp_path / "c.jsonl"
    smx.certify(digits_export, n=2000, stop=40, sigma=0.5, seed=1, batch_size=64, rule=rule, out=out, **option)
    lines = out.read_text().splitlines()
    assert verify(lines, "--artefact", digits_run, "--engine", "torch", "--rerun", 40, "--seed", 0)[0] == 0
    assert verify(lines, "--artefact", digits_export, "--rerun", 40, "--seed", 0)[0] == 0


def test_other_text_for_the_same_values(certified, rejected):
    """White space, order, number format, escapes, fields that nobody knows: a line has one text."""
    line = certified[LINE - 1]
    record = json.loads(line)
    for other in (
        line.replace(": ", ":", 1), line + " ", line.replace('"n": 500', '"n": 5e2').replace("5e2", "500.0"),
        json.dumps(dict(reversed(record.items()))), json.dumps({**record, "x": 1}), line.replace('"n"', '"\\u006e"'),
        line + "\r", json.dumps({**record, "reuse": None}),
    ):  # fmt: skip
        assert other != line
        rejected([*certified[: LINE - 1], other, *certified[LINE:]], LINE)
