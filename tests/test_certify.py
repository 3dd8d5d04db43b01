"""Certificates are right: against classifiers whose true radius is known, and whatever the batches were."""

import json
import re

import numpy as np
import pytest
from onnx_models import batch_mean, half_space, nan_above, write_npz
from scipy import stats

import smoothmix_deploy as smx
from smoothmix_deploy.certificates import read_certificates

RNG = np.random.default_rng(3)
WEIGHTS = RNG.standard_normal(8)
LOWEST_ACCEPTANCE = 1e-6


def lines(path):
    """Certificates without the one field that is not reproducible."""
    records = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.parametrize(("n", "alpha"), [(100, 0.05), (1000, 0.05)])
def test_half_space_is_never_over_certified(tmp_path, n, alpha):
    """The smoothed half-space's radius is the distance to the plane. More than alpha of errors would be a defect."""
    x = RNG.random((600, 2, 4))
    distance = (x.reshape(-1, 8) @ WEIGHTS - 0.3) / np.linalg.norm(WEIGHTS)
    data = write_npz(tmp_path / "x.npz", x.astype(np.float32), (distance > 0).astype(int))
    model = half_space(tmp_path / "h.onnx", WEIGHTS, 0.3)
    result = smx.certify(model, data=data, sigma=0.25, n=n, alpha=alpha, seed=5, out=tmp_path / "c.jsonl")
    certificates = read_certificates(result.path).certificates
    sign = np.where(distance > 0, 1, 0)
    false = sum(
        c.prediction != -1 and (c.prediction != sign[c.index] or c.radius > abs(distance[c.index]))
        for c in certificates
    )
    most = stats.binom.isf(LOWEST_ACCEPTANCE, 600, alpha)
    assert false <= most
    assert false >= 1  # at this alpha some errors are expected: the bound is used up, not ignored
    proved = np.array([c.radius for c in certificates])
    attainable = np.minimum(np.abs(distance), 0.25 * stats.norm.ppf(alpha ** (1 / n)))
    assert proved.mean() > 0.5 * attainable.mean()  # and the certificates say something


def test_counts_match_the_exact_probability(tmp_path):
    """The votes are Binomial(n, Phi(distance / sigma)): exact test for every image, fixed seed."""
    x = RNG.random((40, 2, 4)).astype(np.float32)
    distance = (x.reshape(-1, 8).astype(np.float64) @ WEIGHTS - 0.3) / np.linalg.norm(WEIGHTS)
    data = write_npz(tmp_path / "x.npz", x, np.zeros(40, int))
    model = half_space(tmp_path / "h.onnx", WEIGHTS, 0.3)
    result = smx.certify(model, data=data, sigma=0.5, n=5000, seed=11, out=tmp_path / "c.jsonl")
    for c in read_certificates(result.path).certificates:
        p = stats.norm.cdf(distance[c.index] / 0.5)
        assert stats.binomtest(c.counts.get(1, 0), 5000, p).pvalue > LOWEST_ACCEPTANCE
        assert sum(c.counts.values()) == 5000


def test_batches_change_nothing(digits_export, tmp_path):
    """ONNX Runtime's self-test finds it bitwise batch-invariant here, so the files are equal for any batch size."""
    found = []
    for size in (7, 64, 1000):
        out = tmp_path / f"{size}.jsonl"
        result = smx.certify(digits_export, engine="ort", n=300, stop=12, batch_size=size, seed=2, out=out)
        if not result.manifest.self_test["bitwise_batch_invariant"]:
            pytest.skip("ONNX Runtime is not bitwise batch-invariant on this machine")
        found.append(lines(out))
    assert found[0] == found[1] == found[2]


def test_selection_of_images_changes_nothing(digits_export, tmp_path):
    """A shard's certificates are those of the whole run."""
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    smx.certify(digits_export, n=300, start=0, stop=20, seed=2, out=whole)
    smx.certify(digits_export, n=300, start=3, stop=20, skip=4, seed=2, out=part)
    assert [line["index"] for line in lines(part)] == [3, 7, 11, 15, 19]
    assert lines(part) == lines(whole)[3::4]


def test_engines_agree(digits_run, digits_export, tmp_path):
    """PyTorch and ONNX Runtime see the same noise: votes differ, if at all, where logits all but tie."""
    a, b = tmp_path / "torch.jsonl", tmp_path / "ort.jsonl"
    smx.certify(digits_run, engine="torch", n=500, stop=20, seed=2, out=a)
    smx.certify(digits_export, engine="ort", n=500, stop=20, seed=2, out=b)
    for one, other in zip(lines(a), lines(b), strict=True):
        classes = {*one["counts"], *other["counts"]}
        assert sum(abs(one["counts"].get(k, 0) - other["counts"].get(k, 0)) for k in classes) <= 4


def test_default_key_is_fresh_and_marked(digits_export, tmp_path):
    """Without a seed the key comes from the operating system; with one the manifest says so."""
    manifests = [
        smx.certify(digits_export, n=50, stop=2, out=tmp_path / name, **extra).manifest
        for name, extra in (("a", {}), ("b", {}), ("c", {"seed": 7}))
    ]
    assert manifests[0].key != manifests[1].key
    assert [m.key_chosen_by_user for m in manifests] == [False, False, True]
    assert manifests[2].seed == 7


def test_invalid_votes_count_against(tmp_path):
    """Rows with NaN logits vote for nothing; they are in n, and the bound pays for them."""
    x = np.full((1, 2, 4), 0.5, np.float32)
    data = write_npz(tmp_path / "x.npz", x, np.zeros(1, int))
    model = nan_above(tmp_path / "nan.onnx", 0.9)  # NaN with probability Phi(-(0.9 - 0.5) / 0.5) = 0.21
    result = smx.certify(model, data=data, sigma=0.5, n=2000, seed=1, out=tmp_path / "c.jsonl")
    (c,) = read_certificates(result.path).certificates
    assert set(c.counts) == {0}
    invalid = c.n - c.counts[0]
    assert stats.binomtest(invalid, c.n, stats.norm.sf(0.4 / 0.5)).pvalue > LOWEST_ACCEPTANCE
    assert 0 < c.radius < 0.5 * stats.norm.ppf(0.79) + 0.02
    assert smx.verify(result.path).certificates == 1


@pytest.mark.parametrize("batch_size", [16, 512])
def test_self_test_refuses_what_is_no_function(tmp_path, batch_size):
    """A classifier whose answer depends on its neighbours in the batch is not certified, however large the batch."""
    data = write_npz(tmp_path / "x.npz", RNG.random((4, 2, 4)).astype(np.float32), np.zeros(4, int))
    model = batch_mean(tmp_path / "mean.onnx")
    with pytest.raises(smx.CheckFailed, match="not a function"):
        smx.certify(model, data=data, sigma=0.5, n=100, batch_size=batch_size, seed=1, out=tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()


def test_self_test_does_not_shrink_with_the_batch(digits_export, tmp_path):
    """Small batches are tried more often: at least 256 rows are."""
    for size, rows in ((7, 259), (64, 256), (300, 300)):
        result = smx.certify(digits_export, n=50, stop=2, batch_size=size, out=tmp_path / f"{size}.jsonl")
        assert result.manifest.self_test["rows"] == rows


def test_fixed_batch_is_respected(tmp_path):
    """An ONNX file with a static batch runs at that batch, and at no other."""
    data = write_npz(tmp_path / "x.npz", RNG.random((3, 2, 4)).astype(np.float32), np.zeros(3, int))
    shape = {"inputs": (("x", 1, [16, 1, 2, 4]),), "output_shape": (16, 2)}
    model = half_space(tmp_path / "h.onnx", WEIGHTS, 0.3, **shape)
    result = smx.certify(model, data=data, sigma=0.5, n=100, seed=1, out=tmp_path / "c.jsonl")
    assert result.manifest.engine["batch_size"] == 16
    assert result.manifest.self_test["bitwise_batch_invariant"] is None
    with pytest.raises(smx.BadInput, match="batches of 16 only"):
        smx.certify(model, data=data, sigma=0.5, n=100, batch_size=8, out=tmp_path / "d.jsonl")


def test_tsv_is_the_reference_format_and_rounds_down(digits_export, tmp_path):
    """Readable by `smx report`; no printed radius exceeds the proved one."""
    result = smx.certify(
        digits_export, n=300, stop=30, seed=2, out=tmp_path / "c.jsonl", tsv=tmp_path / "sigma_0.25.tsv"
    )
    rows = [line.split("\t") for line in (tmp_path / "sigma_0.25.tsv").read_text().splitlines()]
    assert rows[0] == ["idx", "label", "predict", "radius", "correct", "time"]
    certificates = read_certificates(result.path).certificates
    for row, c in zip(rows[1:], certificates, strict=True):
        assert (int(row[0]), int(row[1]), int(row[2]), int(row[4])) == (c.index, c.label, c.prediction, int(c.correct))
        assert c.radius * 0.99 <= float(row[3]) <= c.radius
    ours, theirs = smx.report(result.path, tmp_path / "sigma_0.25.tsv").files
    assert theirs.sigma == ours.sigma == 0.25
    assert theirs.summary.accuracy == ours.summary.accuracy


def test_predict_files_and_data(digits_export, tmp_path):
    """A picture from disk gets the prediction that the data set's image gets."""
    from PIL import Image

    from smoothmix_deploy.data import load_data

    images = load_data("digits")
    by_data = smx.predict(digits_export, data="digits", stop=3, n=500, seed=4)
    files = []
    for i in range(3):
        pixels = np.rint(images.image(i)[0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        files.append(tmp_path / f"{i}.png")
    by_file = smx.predict(digits_export, files, n=500, seed=4)
    assert [p.label for p in by_data] == [int(k) for k in images.labels[:3]]
    assert [p.label for p in by_file] == [None] * 3
    for one, other in zip(by_data, by_file, strict=True):
        assert one.prediction == other.prediction
        assert one.radius == pytest.approx(other.radius, abs=0.05)


def test_progress_says_what_one_plans_by(digits_export, tmp_path):
    """Images decided and certified, samples an image, samples/s and the share of the raw engine's rate."""
    said = []
    smx.certify(
        digits_export, engine="ort", data="digits", n=300, stop=40, out=tmp_path / "c.jsonl",
        progress=lambda what, done, total, details: said.append((done, total, details)),
    )  # fmt: skip
    assert said[-1][:2] == (40, 40)
    found = re.search(
        r"40 of 40 decided  \d+ of 40 certified  400 samples an image  [\d,]+ samples/s, (\d+)% of", said[-1][2]
    )
    assert found, said[-1][2]
    assert 0 < int(found[1]) <= 100


def test_another_sigma_than_the_models_is_remarked_on(digits_export, tmp_path):
    """Allowed, as the certificates are true; but seldom meant."""
    notes = []
    for number, sigma in enumerate((0.25, 0.5)):
        out = tmp_path / f"{number}.jsonl"
        smx.certify(digits_export, sigma=sigma, n=100, stop=2, seed=2, out=out, note=notes.append)
    remarks = [note for note in notes if "trained for" in note]
    assert len(remarks) == 1
    assert "--sigma 0.5, but" in remarks[0]
    assert "was trained for 0.25" in remarks[0]
