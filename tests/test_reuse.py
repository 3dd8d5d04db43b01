"""`smx certify --reuse`: exact error of both ways together, certificates of changed engines, refusals, resumption."""

import json

import numpy as np
import pytest
from onnx_models import half_space, write_npz
from scipy import stats
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.certificates import read_certificates
from smoothmix_deploy.data import load_data
from smoothmix_deploy.engines import open_engine, votes
from smoothmix_deploy.noise.gaussian import Stream
from smoothmix_deploy.noise.source import make_noise
from smoothmix_deploy.statistics.bounds import certified_radius, clopper_pearson_lower, clopper_pearson_upper
from smoothmix_deploy.statistics.incremental import (
    promised_radius,
    remaining_alphas,
    reused_lower,
    worth_sampling,
)

N, REPLAYED, IMAGES = 2000, 200, 24


def multinomial(n, q):
    """{(a, b, c, d): probability} of n draws with four outcomes."""
    cells = [(a, b, c, n - a - b - c) for a in range(n + 1) for b in range(n + 1 - a) for c in range(n + 1 - a - b)]
    return np.array(cells), stats.multinomial.pmf(cells, n, q)


@pytest.fixture(scope="module")
def ways():
    """At n = 24, n' = 12: every outcome of the replayed and of the other draws, and the bounds that they give.

    Outcomes are (both A, only f, only f', neither). The fresh bound rests on n draws of f', the replayed ones first.
    """
    n, replayed, alpha_old, alpha = 24, 12, 0.1, 0.3
    alpha2, alpha3 = remaining_alphas(alpha, alpha_old)
    low = np.array([clopper_pearson_lower(s, n, alpha3) for s in range(n + 1)])
    reused = np.array(
        [[reused_lower(s, n, alpha_old, k, replayed, alpha2) for k in range(replayed + 1)] for s in range(n + 1)]
    )
    promised = [promised_radius(s, replayed, n, alpha3, 1.0) for s in range(replayed + 1)]
    fresh = np.array(
        [[[worth_sampling(certified_radius(r, 1.0), promised[v]) for v in range(replayed + 1)] for r in row] for row in reused]
    )  # fmt: skip

    def errors(q):
        """(by the documented choice, by the worst choice): probabilities of a false certificate of A."""
        true = q[0] + q[2]
        first, p_first = multinomial(replayed, q)
        rest, p_rest = multinomial(n - replayed, q)
        of_f = (first[:, 0] + first[:, 1])[:, None] + rest[:, 0] + rest[:, 1]
        of_changed = (first[:, 0] + first[:, 2])[:, None] + rest[:, 0] + rest[:, 2]
        k = np.broadcast_to(first[:, 1][:, None], of_f.shape)
        by_reuse, by_fresh = (b > max(true, 0.5) for b in (reused[of_f, k], low[of_changed]))
        chosen = np.where(fresh[of_f, k, (first[:, 0] + first[:, 2])[:, None]], by_fresh, by_reuse)
        return tuple(float(p_first @ false @ p_rest) for false in (chosen, by_reuse | by_fresh))

    return alpha, alpha_old, fresh, errors


def test_exact_error_is_at_most_alpha(ways):
    """Over both ways together, whichever is chosen after looking: for dense p' and disagreements on either side."""
    alpha, _, fresh, errors = ways
    assert 0.1 < fresh.mean() < 0.99  # both ways are taken
    found = {}
    for true in np.arange(0.30, 0.99, 0.04):
        for only_f in (0.0, 0.005, 0.02, 0.1, 0.3):
            for only_changed in (0.0, 0.02, 0.3):
                both = true - only_changed
                neither = 1 - both - only_f - only_changed
                if both >= 0 and neither >= 0:
                    found[true, only_f, only_changed] = errors(np.array([both, only_f, only_changed, neither]))
    assert len(found) > 120
    chosen, worst = np.array(list(found.values())).T
    assert (chosen <= worst + 1e-12).all()
    assert worst.max() <= alpha
    assert worst.max() > alpha / 4  # the bound is used, not ignored


def test_bounds_of_the_parts():
    """Zeta of the specification's example; slack once; the shares of alpha."""
    assert clopper_pearson_upper(0, 10_000, 0.001) == pytest.approx(0.0007, abs=1e-5)
    plain = clopper_pearson_lower(990, 1000, 0.01)
    assert reused_lower(990, 1000, 0.01, 3, 100, 0.02) == plain - clopper_pearson_upper(3, 100, 0.02)
    assert reused_lower(990, 1000, 0.01, 3, 100, 0.02, 1e-3) == pytest.approx(
        reused_lower(990, 1000, 0.01, 3, 100, 0.02) - 1e-3
    )
    assert reused_lower(1, 1000, 0.01, 90, 100, 0.02) == 0.0
    assert sum(remaining_alphas(0.0011, 0.001)) == pytest.approx(0.0001)
    with pytest.raises(ValueError, match="must exceed"):
        remaining_alphas(0.001, 0.001)


@pytest.fixture(scope="module")
def changed(digits_run):
    """The int8 export of the same run."""
    out = digits_run.parent / "int8"
    return smx.export(digits_run, out=out, precision="int8", max_disagreement=0.05, seed=0).path


@pytest.fixture(scope="module")
def old(digits_export, tmp_path_factory):
    """The earlier file."""
    out = tmp_path_factory.mktemp("old") / "old.jsonl"
    return smx.certify(digits_export, engine="ort", n=N, stop=IMAGES, seed=1, out=out).path


def reuse(changed, old, artefact, out, **arguments):
    """The certificates of `changed`."""
    defaults = {"engine": "ort", "n": N, "stop": IMAGES, "reuse_n": REPLAYED}
    return smx.certify(changed, reuse=old, reuse_artefact=artefact, out=out, **{**defaults, **arguments})


@pytest.fixture(scope="module")
def new(changed, old, digits_export, tmp_path_factory):
    """The file made by reuse."""
    notes = []
    out = tmp_path_factory.mktemp("new") / "new.jsonl"
    result = reuse(changed, old, digits_export, out, note=notes.append)
    assert any("alpha 0.0011" in text for text in notes)
    assert any("images rest on" in text for text in notes)
    return result


def records(path):
    """Certificates without the one field that is not reproducible."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()[1:]]


def test_reused_and_fresh_certificates(new, old, changed, digits_export):
    """Both kinds occur; reused radii are below the earlier ones; fresh lines are those of a run without --reuse."""
    before = {c.index: c for c in read_certificates(old).certificates}
    lines = read_certificates(new.path).certificates
    reused = [c for c in lines if c.reuse is not None]
    assert 0 < len(reused) < len(lines)
    assert any(c.prediction >= 0 for c in reused)
    for c in reused:
        assert c.radius <= before[c.index].radius
        assert c.n == REPLAYED
    assert new.manifest.alpha == 0.0011
    assert new.manifest.key == read_certificates(old).manifest.key
    assert new.samples == sum(c.n + (0 if c.reuse else 100) for c in lines)
    assert smx.verify(new.path, artefact=changed, rerun=4, seed=0, reuse_file=old).same_engine
    plain = new.path.with_name("plain.jsonl")
    smx.certify(changed, engine="ort", n=N, stop=IMAGES, seed=1, out=plain)
    counts = {c.index: c.counts for c in read_certificates(plain).certificates}
    for c in lines:
        if c.reuse is None:
            assert c.counts == counts[c.index]


def test_disagreements_are_those_of_an_independent_count(new, old, changed, digits_export):
    """Noise, engines and counting by hand, image by image."""
    images = load_data("digits")
    engines = [open_engine(open_artefact(path), "ort", batch_size=100) for path in (digits_export, changed)]
    noise = make_noise("gaussian", new.manifest.key, 0.25, images.shape)
    before = {c.index: c for c in read_certificates(old).certificates}
    seen = []
    for c in read_certificates(new.path).certificates:
        if c.reuse is None or before[c.index].prediction < 0:
            continue
        x = np.empty((REPLAYED, 64), np.float32)
        noise.fill(x, images.image(c.index).reshape(-1), Stream.ESTIMATION, c.index, 0)
        x = x.reshape(-1, 100, *images.shape)
        f, g = (np.concatenate([votes(engine.logits(part)) for part in x]) for engine in engines)
        top = before[c.index].prediction
        seen.append(int(((f == top) & (g != top)).sum()))
        assert c.reuse["disagreements"] == seen[-1]
        assert c.counts == {int(k): int((g == k).sum()) for k in np.unique(g)}
    assert len(seen) > 3


def test_half_spaces_are_never_over_certified(tmp_path):
    """f' is f's plane shifted, or the opposite: true radii are known, and what changed much is sampled afresh."""
    rng = np.random.default_rng(3)
    weights, x = rng.standard_normal(8), rng.random((100, 2, 4)).astype(np.float32)
    projected = x.reshape(-1, 8).astype(float) @ weights
    data = write_npz(tmp_path / "x.npz", x, np.zeros(100, int))
    f = half_space(tmp_path / "f.onnx", weights, 0.3)
    common = {"data": data, "sigma": 0.25, "n": N}
    smx.certify(f, **common, seed=5, out=tmp_path / "old.jsonl")
    kept = {}
    for name, sign, offset in (("shifted", 1, 0.31), ("opposite", -1, -0.3)):
        model = half_space(tmp_path / f"{name}.onnx", sign * weights, offset)
        distance = (sign * projected - offset) / np.linalg.norm(weights)
        out = tmp_path / f"{name}.jsonl"
        smx.certify(model, **common, reuse=tmp_path / "old.jsonl", reuse_artefact=f, reuse_n=REPLAYED, out=out)
        lines = read_certificates(out).certificates
        assert all(
            c.prediction < 0 or (c.prediction == int(distance[c.index] > 0) and c.radius <= abs(distance[c.index]))
            for c in lines
        )
        assert sum(c.prediction >= 0 for c in lines) > 75
        kept[name] = sum(c.reuse is not None and c.prediction >= 0 for c in lines)
        assert smx.verify(out, reuse_file=tmp_path / "old.jsonl").certificates == 100
    assert kept["shifted"] > 30
    assert kept["opposite"] == 0


def test_grid_noise_and_the_familys_alpha(tmp_path):
    """Slack is carried along; the family's error is that of all shares; both sides of --alpha-family are checked."""
    rng = np.random.default_rng(0)
    weights, x = rng.standard_normal(8), rng.integers(0, 256, (30, 2, 4), dtype=np.uint8)
    data = write_npz(tmp_path / "x.npz", x, np.zeros(30, int))
    f, g = (half_space(tmp_path / f"{name}.onnx", weights, at) for name, at in (("f", 0.3), ("g", 0.31)))
    common = {"data": data, "sigma": 0.25, "n": N, "noise": "grid"}
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    smx.certify(f, **common, seed=1, alpha_family=0.03, out=old)
    more = {"reuse": old, "reuse_artefact": f, "reuse_n": 300}
    result = smx.certify(g, **common, **more, alpha_family=0.04, out=new)
    assert result.manifest.alpha == 0.04 / 30
    assert result.manifest.rule_parameters["slack"] > 0
    assert sum(c.reuse is not None for c in read_certificates(new).certificates) in range(1, 30)
    assert smx.verify(new, artefact=g, rerun=5, seed=0, reuse_file=old).same_engine
    with pytest.raises(smx.BadInput, match="--alpha-family"):
        smx.certify(g, **common, **more, alpha_family=0.02, out=tmp_path / "x.jsonl")
    with pytest.raises(smx.BadInput, match="--noise grid"):
        smx.certify(g, **{**common, "noise": "gaussian"}, **more, out=tmp_path / "x.jsonl")


def test_resumed_is_uninterrupted(new, changed, old, digits_export, tmp_path, monkeypatch):
    """From any number of lines, and after Ctrl-C."""
    lines = new.path.read_text().splitlines(keepends=True)
    for kept in (1, 6, 20):
        out = tmp_path / f"{kept}.jsonl"
        out.write_text("".join(lines[:kept]) + lines[kept][:30])
        reuse(changed, old, digits_export, out, resume=True)
        assert records(out) == records(new.path)
    out = tmp_path / "c.jsonl"

    def stop(what, written, total, details):
        if written:
            raise KeyboardInterrupt

    with pytest.raises(smx.Stopped, match="--resume"):
        reuse(changed, old, digits_export, out, progress=stop)
    assert 0 < len(records(out)) < IMAGES
    with pytest.raises(smx.BadInput, match="reuse sha256"):
        smx.certify(changed, engine="ort", n=N, stop=IMAGES, alpha=0.0011, resume=True, out=out)
    with pytest.raises(smx.BadInput, match="reuse replayed"):
        reuse(changed, old, digits_export, out, reuse_n=400, resume=True)
    reuse(changed, old, digits_export, out, resume=True)
    assert records(out) == records(new.path)


def test_batches_change_nothing(tmp_path):
    """Of either engine, where it is bitwise batch-invariant, as these are here; nor does the selection of images."""
    rng = np.random.default_rng(4)
    weights, x = rng.standard_normal(8), rng.random((20, 2, 4)).astype(np.float32)
    data = write_npz(tmp_path / "x.npz", x, np.zeros(20, int))
    f, g = (half_space(tmp_path / f"{name}.onnx", weights, at) for name, at in (("f", 0.3), ("g", 0.4)))
    found = []
    for size in (7, 64):
        old, new = tmp_path / f"old{size}.jsonl", tmp_path / f"new{size}.jsonl"
        common = {"data": data, "sigma": 0.5, "n": N}
        smx.certify(f, **common, seed=2, batch_size=size, out=old)
        result = smx.certify(
            g, **common, reuse=old, reuse_artefact=f, reuse_n=REPLAYED, batch_size=300 - size, start=3, stop=20, skip=4,
            out=new,
        )  # fmt: skip
        if not result.manifest.self_test["bitwise_batch_invariant"]:
            pytest.skip("ONNX Runtime is not bitwise batch-invariant on this machine")
        found.append(records(new))
    assert found[0] == found[1]
    assert any(record["reuse"]["disagreements"] for record in found[0] if "reuse" in record)


def edit(path, out, line, change):
    """A copy with one line changed."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[line - 1])
    change(record)
    lines[line - 1] = json.dumps(record)
    out.write_text("\n".join(lines) + "\n")
    return out


def _line_with_disagreement(path):
    return next(
        line for line, c in enumerate(read_certificates(path).certificates, start=2) if c.reuse and c.reuse["disagreements"]
    )  # fmt: skip


EDITS = {
    "fewer disagreements": lambda r: r["reuse"].update(disagreements=0),
    "no disagreements": lambda r: r["reuse"].pop("disagreements"),
    "not asked": lambda r: r["reuse"].update(disagreements=None),
    "too many": lambda r: r["reuse"].update(disagreements=201),
    "more votes": lambda r: r["reuse"]["counts"].update({str(r["prediction"]): N}),
    "impossible votes": lambda r: r["reuse"]["counts"].update({"10": 1}),
    "negative votes": lambda r: r["reuse"]["counts"].update({"3": -1}),
    "another class": lambda r: r["reuse"].update(selection_counts={str((r["prediction"] + 1) % 10): 100}),
    "votes of nobody": lambda r: r["reuse"].update(selection_counts=3),
    "as if fresh": lambda r: r.pop("reuse"),
    "another n": lambda r: r.update(n=201),
    "another radius": lambda r: r.update(radius=r["radius"] * 1.001),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_lines_are_caught(name, new, tmp_path):
    """`smx verify` names the line."""
    line = _line_with_disagreement(new.path)
    path = edit(new.path, tmp_path / "x.jsonl", line, EDITS[name])
    with pytest.raises(smx.CheckFailed, match=f"line {line} "):
        smx.verify(path)


def test_edited_manifests_and_earlier_files_are_caught(new, old, digits_export, tmp_path):
    """Shares that exceed alpha; no record of reuse; lines that are not the earlier ones; another earlier file."""
    for change in (
        lambda r: r["reuse"].update(alpha_disagreement=0.01),
        lambda r: r["reuse"].update(replayed=N),
        lambda r: r["reuse"].pop("sha256"),
        lambda r: (r.update(alpha=5.0), r["reuse"].update(alpha=2.0)),
        lambda r: r["reuse"].update(alpha_disagreement=0.0),
        lambda r: r.update(reuse=3),
        lambda r: r.update(reuse=None),
    ):
        with pytest.raises(smx.CheckFailed, match="line "):
            smx.verify(edit(new.path, tmp_path / "x.jsonl", 1, change))
    line = _line_with_disagreement(new.path)

    def another_vote(record):
        counts = record["reuse"]["counts"]
        other = next(k for k in map(str, range(10)) if k != str(record["prediction"]) and counts.get(k))
        counts[other] -= 1

    path = edit(new.path, tmp_path / "y.jsonl", line, another_vote)
    assert smx.verify(path).certificates == IMAGES
    with pytest.raises(smx.CheckFailed, match=f"line {line} .*not the votes of"):
        smx.verify(path, reuse_file=old)
    other = edit(old, tmp_path / "other.jsonl", 2, lambda r: r.update(seconds=0.5))
    with pytest.raises(smx.CheckFailed, match="is another"):
        smx.verify(new.path, reuse_file=other)
    with pytest.raises(smx.CheckFailed, match="not made with --reuse"):
        smx.verify(old, reuse_file=old)


def refusals(changed, old, export, folder):
    """(exit code, what the line says, options)."""

    def other_engine(record):
        record["engine"]["version"] = "0.1"

    def other_key(record):
        record["key"] = "0" * 32

    tampered = edit(old, folder / "tampered.jsonl", 3, lambda r: r.update(radius=9.0))
    version = edit(old, folder / "version.jsonl", 1, other_engine)
    key = edit(old, folder / "key.jsonl", 1, other_key)
    two_class = smx.certify(export, n=200, stop=2, rule="two-class", out=folder / "two.jsonl").path
    return {
        "no artefact": (2, "needs --reuse-artefact", {"reuse_artefact": None}),
        "no file": (2, "no such file", {"reuse": folder / "none.jsonl"}),
        "artefact without file": (2, "go with --reuse", {"reuse": None}),
        "another artefact": (3, "is for SHA-256", {"reuse_artefact": changed}),
        "tampered": (3, "line 3", {"reuse": tampered}),
        "engine": (3, "not the function that was certified", {"reuse": version}),
        "key": (3, "not the function that was certified", {"reuse": key}),
        "rule of the file": (2, "two-class", {"reuse": two_class}),
        "sigma": (2, "--sigma", {"sigma": 0.5}),
        "images": (2, "no certificate for image 24", {"stop": 30}),
        "data": (2, "other images", {"data": "npz:" + str(folder / "d.npz")}),
        "alpha": (2, "--alpha 0.0011", {"alpha": 0.0009}),
        "too much alpha": (2, "below 0.5", {"alpha": 0.7}),
        "n": (2, "--reuse-n 5000", {"reuse_n": 5000}),
        "zero": (2, "--reuse-n 0", {"reuse_n": 0}),
        "seed": (2, "--seed", {"seed": 3}),
        "rule": (2, "--rule two-class", {"rule": "two-class"}),
    }


def test_refusals(changed, old, digits_export, tmp_path, capfd):
    """One line, the right exit code, no file."""
    np.savez(tmp_path / "d.npz", x=np.zeros((30, 8, 8), np.uint8), y=np.zeros(30, int))
    for name, (code, text, options) in refusals(changed, old, digits_export, tmp_path).items():
        out = tmp_path / "refused.jsonl"
        given = {"engine": "ort", "n": N, "stop": IMAGES, "reuse": old, "reuse_artefact": digits_export,
                 "reuse_n": REPLAYED, "out": out, **options}  # fmt: skip
        words = [str(w) for k, v in given.items() if v is not None for w in ("--" + k.replace("_", "-"), v)]
        capfd.readouterr()
        assert cli._run(["certify", str(changed), *words], debug=False) == code, name
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("smx: error: ")]
        assert len(errors) == 1, name
        assert text in errors[0], (name, errors)
        if out.exists():  # found out while replaying: the manifest is there, no certificate
            assert name == "key"
            assert records(out) == []
            out.unlink()
