"""Sequential rules from end to end: resumption, shards, batch sizes, verification, the family's alpha, the predictor."""

import json
import re

import numpy as np
import pytest
from onnx_models import half_space, write_npz
from scipy import stats
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.certificates import read_certificates
from smoothmix_deploy.certification import campaign as certifying
from smoothmix_deploy.certification.scheduler import Scheduler
from smoothmix_deploy.rules import make_rule

RULES = {
    "radius": {"rule": "radius", "radius": 0.2},
    "grid": {"rule": "grid", "grid": 0.1},
    "anytime": {"rule": "anytime", "tolerance": 0.1},
    "two-class": {"rule": "two-class"},
}
IMAGES, N = 30, 2000


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """(model, data, distances): a half-space, whose true radii are known."""
    folder, rng = tmp_path_factory.mktemp("plane"), np.random.default_rng(5)
    weights, x = rng.standard_normal(8), rng.random((IMAGES, 2, 4)).astype(np.float32)
    distance = (x.reshape(-1, 8).astype(float) @ weights - 0.3) / np.linalg.norm(weights)
    data = write_npz(folder / "x.npz", x, (distance > 0).astype(int))
    return half_space(folder / "h.onnx", weights, 0.3), data, distance


def certify(planes, out, **arguments):
    """With a fixed seed, at sigma 0.25."""
    return smx.certify(planes[0], data=planes[1], sigma=0.25, out=out, **{"n": N, "seed": 1, **arguments})


def records(path):
    """Certificates without the one field that is not reproducible."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def whole(planes, tmp_path_factory):
    """The certificates of every rule."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: certify(planes, folder / f"{name}.jsonl", **rule).path for name, rule in RULES.items()}


@pytest.mark.parametrize("name", RULES)
def test_certificates_are_true_and_useful(name, planes, whole):
    """No radius beyond the distance to the plane (alpha 0.001, fixed seed), and most of it is found."""
    sign = np.where(planes[2] > 0, 1, 0)
    certificates = read_certificates(whole[name]).certificates
    for c in certificates:
        assert c.prediction == -1 or (c.prediction == sign[c.index] and c.radius <= abs(planes[2][c.index]))
    proved = sum(c.prediction != -1 for c in certificates)
    possible = (np.abs(planes[2]) > (0.25 if name == "radius" else 0.05)).sum()
    assert proved >= possible
    assert smx.verify(whole[name]).certificates == IMAGES
    if name == "radius":
        assert {c.radius for c in certificates} == {0.0, 0.2}
        assert len({c.n for c in certificates}) > 3
        assert smx.report(whole[name]).files[0].summary.mean_samples < N / 4
    if name == "grid":
        assert {c.radius for c in certificates} <= {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7}
    if name == "anytime":
        width = [0.25 * np.diff(stats.norm.ppf(stats.beta.ppf([0.05, 0.95], max(c.counts.values()), c.n)))
                 for c in certificates if c.n < N and c.prediction != -1 and len(c.counts) == 2]  # fmt: skip
        assert width
        assert max(width) < 0.1


@pytest.mark.parametrize("name", RULES)
def test_batches_and_shards_change_nothing(name, planes, whole, tmp_path):
    """Any batch size; shards merged are the whole."""
    for size in (7, 64):
        certify(planes, tmp_path / f"{size}.jsonl", batch_size=size, **RULES[name])
        assert records(tmp_path / f"{size}.jsonl") == records(whole[name])
    merged = []
    for first in range(3):
        certify(planes, tmp_path / f"part{first}.jsonl", start=first, skip=3, **RULES[name])
        merged += records(tmp_path / f"part{first}.jsonl")
    assert sorted(merged, key=lambda record: record["index"]) == records(whole[name])


@pytest.mark.parametrize("after", [1, 3, 9])
@pytest.mark.parametrize("name", RULES)
def test_interrupted_and_resumed(name, after, planes, whole, tmp_path, monkeypatch):
    """Ctrl-C after some batches: images in the middle of their looks go on where they were."""
    out, calls, tell = tmp_path / "c.jsonl", 0, certifying.Campaign._tell

    def stop(self, scheduler):
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        tell(self, scheduler)

    monkeypatch.setattr(certifying.Campaign, "_tell", stop)
    with pytest.raises(smx.Stopped):
        certify(planes, out, batch_size=16, **RULES[name])
    monkeypatch.undo()
    assert (tmp_path / "c.jsonl.partial").exists()
    certify(planes, out, batch_size=16, resume=True, **RULES[name])
    assert records(out) == records(whole[name])


@pytest.mark.parametrize(
    "changed", [{"radius": 0.3}, {"rule": "grid", "grid": 0.2, "radius": None}, {"alpha_family": 0.03}]
)
def test_resuming_another_rule_is_refused(changed, planes, whole, tmp_path):
    """The radius and the family are part of what makes it the same run."""
    out = tmp_path / "c.jsonl"
    out.write_bytes(whole["radius"].read_bytes())
    with pytest.raises(smx.BadInput, match="was begun with"):
        certify(planes, out, resume=True, **{**RULES["radius"], **changed})


def test_verify_rejects_what_the_rule_would_not_do(whole, tmp_path):
    """Another look, counts at which the rule goes on, counts that would have ended earlier, another radius."""
    lines = whole["radius"].read_text().splitlines()
    at, record = next(
        (i, r) for i, r in enumerate(map(json.loads, lines[1:]), 1) if r["radius"] == 0.2 and len(r["counts"]) > 0
    )
    top, n = str(record["prediction"]), record["n"]
    manifest = json.loads(lines[0])
    rule = make_rule("radius", sigma=0.25, n=N, alpha=0.001, **manifest["rule_parameters"])
    look = rule.looks[20]
    for changes, message in (
        ({"n": n + 1}, "the rule decides at 8, 9, 10, ..."),
        ({"n": 20, "counts": {top: 15, "5": 0}, "prediction": 0}, "outside"),
        ({"n": look, "counts": {top: round(0.8 * look)}}, f"goes on after {look}"),
        ({"n": N, "counts": {top: N}}, "ends before 2000"),
        ({"radius": 0.3}, "radius 0.3, but"),
        ({"p_lower": 0.99}, "p_lower 0.99, but"),
        ({"prediction": -1, "correct": False, "radius": 0.0}, "prediction -1, but"),
    ):
        edited = [*lines[:at], json.dumps({**record, **changes}), *lines[at + 1 :]]
        (tmp_path / "x.jsonl").write_text("\n".join(edited) + "\n")
        with pytest.raises(smx.CheckFailed, match=f"line {at + 1}.*{re.escape(message)}"):
            smx.verify(tmp_path / "x.jsonl")
    for parameters in ({**manifest["rule_parameters"], "radius": 0.1}, {}, {"radius": 50}, {"x": 1, "radius": 0.2}):
        first = json.dumps({**manifest, "rule_parameters": parameters})
        (tmp_path / "x.jsonl").write_text("\n".join([first, *lines[1:]]) + "\n")
        with pytest.raises(smx.CheckFailed):
            smx.verify(tmp_path / "x.jsonl")


def test_family(planes, tmp_path):
    """alpha an image is the family's over the images selected, also when resumed; verify checks the division."""
    out = tmp_path / "c.jsonl"
    result = certify(planes, out, alpha_family=0.03, **RULES["grid"])
    assert result.manifest.alpha == 0.03 / IMAGES
    assert smx.verify(out).certificates == IMAGES
    complete = records(out)
    out.write_text("".join(line + "\n" for line in out.read_text().splitlines()[:9]))
    certify(planes, out, alpha_family=0.03, resume=True, **RULES["grid"])
    assert records(out) == complete
    lines = out.read_text().splitlines()
    (tmp_path / "x.jsonl").write_text(
        "\n".join([json.dumps({**json.loads(lines[0]), "alpha_family": 0.02}), *lines[1:]]) + "\n"
    )
    with pytest.raises(smx.CheckFailed, match="line 1: alpha"):
        smx.verify(tmp_path / "x.jsonl")
    for wrong, message in (({"alpha": 0.01, "alpha_family": 0.01}, "one of the two"), ({"alpha_family": 1.0}, "0.5")):
        with pytest.raises(smx.BadInput, match=message):
            certify(planes, tmp_path / "y.jsonl", **wrong)


def test_files_without_a_family_are_read(whole, tmp_path):
    """Those of earlier versions."""
    lines = whole["two-class"].read_text().splitlines()
    manifest = json.loads(lines[0])
    del manifest["alpha_family"]
    (tmp_path / "x.jsonl").write_text("\n".join([json.dumps(manifest), *lines[1:]]) + "\n")
    assert smx.verify(tmp_path / "x.jsonl").certificates == IMAGES


def test_report_of_mixed_files(whole):
    """Every file says its rule and its mean samples."""
    report = smx.report(*whole.values(), radii=[0.0, 0.2])
    text = report.table()
    for label in ("radius 0.2", "grid 0.1", "anytime 0.1", "two-class"):
        assert label in text
    by_rule = {f["rule"]: f for f in report.record()["files"]}
    assert (
        by_rule["radius"]["mean_samples"] < by_rule["grid"]["mean_samples"] < N == by_rule["two-class"]["mean_samples"]
    )
    assert by_rule["radius"]["certified"]["0.2"] == pytest.approx(by_rule["grid"]["certified"]["0.2"], abs=0.11)


def test_radius_zero_is_a_prediction(planes, tmp_path):
    """Certified at 0: p > 1/2 is proved, the answer is right at the image, no abstention; the table says radius 0."""
    result = certify(planes, tmp_path / "c.jsonl", rule="radius", radius=0.0, tsv=tmp_path / "sigma_0.25")
    assert result.summary.abstained < 0.2
    assert result.summary.acr == 0
    report = smx.report(result.path, tmp_path / "sigma_0.25", radii=[0.0])
    ours, theirs = (f["certified"]["0"] for f in report.record()["files"])
    assert ours == theirs == result.summary.accuracy > 0.8
    assert smx.verify(result.path).certificates == IMAGES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--radius 0.5", "goes with --rule radius"),
        ("--rule radius", "needs --radius"),
        ("--rule radius --radius 5", "out of reach of --n 100000"),
        ("--rule grid --grid 0", "positive"),
        ("--rule anytime --tolerance 0.1 --n 5", "too few samples"),
        ("--rule two-class --n 10", "at least --n 11"),
        ("--alpha-family 0", "--alpha-family 0"),
    ],
)
def test_wrong_combinations(words, message, planes, tmp_path, capfd):
    """One line, exit code 2, no file."""
    out = tmp_path / "c.jsonl"
    arguments = ["certify", str(planes[0]), "--data", planes[1], "--sigma", "0.25", "--out", str(out), *words.split()]
    assert cli._run(arguments, debug=False) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("smx: error: ")
    assert message in error
    assert not out.exists()


def test_progress_is_what_a_person_can_plan_by(planes, tmp_path):
    """Decided, certified, samples an image, rate; never beyond the total, done at the end."""
    seen = []
    certify(
        planes, tmp_path / "c.jsonl", progress=lambda *update: seen.append(update), batch_size=16, **RULES["radius"]
    )
    assert all(0 <= done <= total == IMAGES for _, done, total, _ in seen)
    assert seen[-1][1] == IMAGES
    assert re.fullmatch(
        rf"{IMAGES} of {IMAGES} decided  \d+ of {IMAGES} certified  [\d,]+ samples an image  [\d,]+ samples/s(, \d+% of the raw engine)?",
        seen[-1][3],
    )


def test_predictor_answers_like_predict(planes):
    """One image at a time; the samples drawn ahead change no verdict of a rule."""
    arguments = {"sigma": 0.25, "n": N, "rule": "radius", "radius": 0.2, "seed": 3}
    ask = smx.Predictor(planes[0], batch_size=32, **arguments)
    by_file = np.load(planes[1].removeprefix("npz:"))["x"]
    answers = [ask(x[None].astype(np.float32)) for x in by_file]
    clear = np.abs(np.abs(planes[2]) - 0.2) > 0.06
    for answer, distance, sure in zip(answers, planes[2], clear, strict=True):
        if sure:
            assert answer.prediction == (-1 if abs(distance) < 0.2 else int(distance > 0))
    # The first question's noise is that of image 0: the same verdict as `smx predict` gives.
    (first,) = smx.predict(planes[0], data=planes[1], stop=1, **arguments)
    assert (answers[0].prediction, answers[0].radius) == (first.prediction, first.radius)
    with pytest.raises(smx.BadInput, match="shape"):
        ask(np.zeros((1, 3, 3), np.float32))


@pytest.mark.parametrize("rows", [1, 7, 50, 400])
def test_samples_drawn_ahead_change_nothing(rows):
    """Verdict and counts are those without; needless votes are not counted."""
    from test_scheduler import DoublingRule, K, play

    plain, _ = play(Scheduler(range(9), DoublingRule(), 2, K), 1)
    ahead, _ = play(Scheduler(range(9), DoublingRule(), 2, K, speculate=True), rows)
    assert [(j.index, j.verdict, j.estimation.votes.drawn, j.estimation.votes.counts_K.tolist()) for j in ahead] == [
        (j.index, j.verdict, j.estimation.votes.drawn, j.estimation.votes.counts_K.tolist()) for j in plain
    ]


@pytest.mark.parametrize("name", ["radius", "grid"])
def test_rerun(name, digits_run, digits_export, tmp_path):
    """Sampled again: identical on the same engine; consistent on another one, wherever its own votes would have ended."""
    options = {"radius": {"radius": 0.15}, "grid": {"grid": 0.1}}[name]
    result = smx.certify(digits_export, n=1000, stop=12, seed=1, rule=name, out=tmp_path / "c.jsonl", **options)
    assert smx.verify(result.path, artefact=digits_export, rerun=12).same_engine
    assert not smx.verify(result.path, artefact=digits_run, engine="torch", rerun=12).same_engine
