"""`smx audit`: silent about honest certificates, loud about forged ones, and its attack is near the best there is."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.auditing.attack import Effort, strongest_perturbation
from smoothmix_deploy.auditing.points import SHARE, place
from smoothmix_deploy.rules import make_rule
from smoothmix_deploy.statistics.bounds import outvoted_p_value

QUICK = ("--restarts", 4, "--steps", 12, "--samples", 16, "--n", 1000, "--seed", 0)


@pytest.fixture(scope="module")
def certified(digits_export, tmp_path_factory):
    """An honest file: 8 images."""
    out = tmp_path_factory.mktemp("certified") / "c.jsonl"
    smx.certify(digits_export, n=500, stop=8, seed=0, batch_size=64, out=out)
    return out


@pytest.fixture
def audit(digits_export, digits_run, tmp_path, capfd):
    """Exit code, standard output and error of a quick audit."""

    def run(certs, *arguments, white_box=("--run", digits_run)):
        words = ["audit", certs, "--artefact", digits_export, *white_box, *QUICK, "--out", tmp_path / "a.jsonl"]
        capfd.readouterr()
        code = cli._run([str(word) for word in (*words, *arguments)], debug=False)
        return code, *capfd.readouterr()

    return run


def forged(certified, path, *, n=100_000, **manifest):
    """Certificates that claim a unanimous vote of n samples: every line follows from its votes, and none is true."""
    first, *lines = (json.loads(line) for line in certified.read_text().splitlines())
    first |= {"n": n, **manifest}
    rule = make_rule("fixed", sigma=first["sigma"], n=n, alpha=first["alpha"])
    records = [first]
    for line in lines:
        k = line["prediction"]
        if k >= 0:
            counts = np.bincount([k], minlength=10)
            verdict = rule.decide(counts * first["n0"], counts * n, n)
            line |= {"n": n, "counts": {str(k): n}, "radius": verdict.radius, "p_lower": verdict.p_lower}
        records.append(line)
    records = [r for r in records if r.get("n", 0) == n or r["kind"] == "manifest"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_honest_certificates_are_not_accused(certified, audit, tmp_path):
    """No flip inside; flips outside; every field that --json promises."""
    code, out, err = audit(certified, "--images", 6, "--outside", "1.5,3", "--json")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["images"] == 6
    assert found["flips_inside"] == 0
    assert not found["toothless"]
    assert 0 < found["flipped_within"]["3"] >= found["flipped_within"]["1.5"]
    for image in found["results"]:
        assert image["inside"]["distance"] <= SHARE * image["radius"]
        assert image["adversarial"] is None
        assert all(trial["flipped"] == (trial["p_value"] <= 0.001 / 6) for trial in image["outside"])
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "audit"
    assert lines[0]["key"] != json.loads(certified.read_text().splitlines()[0])["key"]  # although both have seed 0
    assert lines[1:] == found["results"]
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("manifest", [{}, {"sigma": 0.5}], ids=["votes", "sigma"])
def test_forged_certificates_are_caught(manifest, certified, audit, tmp_path):
    """Votes that were never cast, another sigma: exit code 3, one line, and the adversarial image beside the file."""
    false = forged(certified, tmp_path / "f.jsonl", **manifest)
    assert smx.verify(false).certificates
    code, out, err = audit(false, "--images", 3, "--json")
    assert code == 3, (out, err)
    assert json.loads(out.splitlines()[-1])["flips_inside"] >= 1
    errors = [line for line in err.splitlines() if line.startswith("smx: error: ")]
    assert len(errors) == 1
    assert all(word in errors[0] for word in ("image", "within", "distance", "(p = ", "saved as"))
    (_, *lines) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    flipped = next(line for line in lines if line["inside"]["flipped"])
    point = np.load(flipped["adversarial"])
    image = smx_image(flipped["index"])
    assert point.dtype == np.float32
    distance = np.linalg.norm(point.astype(np.float64) - image)
    assert distance == pytest.approx(flipped["inside"]["distance"], rel=1e-12)
    assert distance < flipped["radius"]


def smx_image(index):
    """Image of the digits' test split, float64."""
    from smoothmix_deploy.data import load_data

    return load_data("digits").image(index).astype(np.float64)


def test_reproducible(certified, audit, tmp_path):
    """The same seed, the same lines; another seed, other randomness."""
    texts = []
    for name, seed in (("1", 7), ("2", 7), ("3", 8)):
        out = tmp_path / f"{name}.jsonl"
        assert audit(certified, "--images", 2, "--outside", 2, "--seed", seed, "--out", out)[0] == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_grid_certificates_are_attacked_by_8_bit_images(digits_run, tmp_path):
    """The saved adversarial image of a false claim is one; a true file is not accused."""
    from smoothmix_deploy.data import load_data

    digits = load_data("digits")
    x = np.rint(255 * digits.batch(np.arange(6))[:, 0]).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=digits.labels[:6])
    certs = tmp_path / "g.jsonl"
    smx.certify(digits_run, data=f"npz:{tmp_path / 'd.npz'}", engine="torch", noise="grid", n=500, seed=1, out=certs)
    quick = {"artefact": digits_run, "restarts": 4, "steps": 12, "samples": 16, "n": 1000, "seed": 0}
    assert not smx.audit(certs, **quick, images=3, out=tmp_path / "a.jsonl").flips
    record = json.loads(certs.read_text().splitlines()[0])
    slack = record["rule_parameters"]["slack"]
    rule = make_rule("fixed", sigma=0.25, n=500, alpha=0.001, slack=slack)
    assert rule.largest_radius > 0
    lines = [record]
    for line in map(json.loads, certs.read_text().splitlines()[1:]):  # unanimous votes for a class that is not there
        k = (line["label"] + 1) % 10
        counts = np.bincount([k], minlength=10)
        verdict = rule.decide(100 * counts, 500 * counts, 500)
        lines.append(line | {"prediction": k, "correct": False, "counts": {str(k): 500}, "selection_counts": {str(k): 100},
                             "radius": verdict.radius, "p_lower": verdict.p_lower})  # fmt: skip
    certs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (flip, *_) = smx.audit(certs, **quick, images=1, out=tmp_path / "b.jsonl").flips
    levels = 255 * np.load(flip.adversarial).astype(np.float64)
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    squares = int(((np.rint(levels[0]).astype(int) - x[flip.index]) ** 2).sum())
    assert squares < (255 * Fraction(flip.radius)) ** 2


def test_interruption_keeps_what_was_found(certified, audit, tmp_path, monkeypatch):
    """The line of the first image is on disk when the second one is interrupted."""
    from smoothmix_deploy.auditing import run as module

    begun = []

    def once(*arguments, **options):
        begun.append(arguments)
        if len(begun) == 3:  # outside and inside of the first image are done
            raise KeyboardInterrupt
        return strongest_perturbation(*arguments, **options)

    monkeypatch.setattr(module, "strongest_perturbation", once)
    code, _, err = audit(certified, "--images", 3, "--outside", 2)
    assert code == 5
    assert "1 of 3 images" in err
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_an_attack_without_teeth_says_so(certified, audit):
    """Hardly any effort, hardly outside."""
    code, _, err = audit(certified, "--images", 1, "--steps", 1, "--restarts", 1, "--outside", "1.0001")
    assert code == 0
    assert "says little" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--images", 0), "--images 0"),
        (("--steps", 0), "--steps 0"),
        (("--alpha", 0.7), "--alpha 0.7"),
        (("--outside", "0.5"), "--outside 0.5"),
        (("--outside", "nan"), "--outside nan"),
        (("--outside", "x"), "--outside x"),
        (("--outside", ""), "--outside"),
        (("--data", "npz:missing.npz"), "missing.npz"),
        (("--artefact", "nowhere"), "nowhere"),
    ],
    ids=str,
)
def test_wrong_options(arguments, said, certified, audit, tmp_path):
    """One line, exit code 2, no file."""
    code, out, err = audit(certified, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a.jsonl").exists()


def test_wrong_run_folder(certified, audit, digits_run, digits_export, tmp_path):
    """Missing, no run folder, other weights; an --out that exists; no certificate to attack."""
    import shutil

    from safetensors.torch import load_file, save_file

    assert "--run: missing" in audit(certified, white_box=())[2]
    assert "not a run folder" in audit(certified, white_box=("--run", digits_export))[2]
    other = shutil.copytree(digits_run, tmp_path / "other")
    state = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in state.items()}, other / "model.safetensors")
    code, _, err = audit(certified, white_box=("--run", other))
    assert code == 2
    assert "weights" in err
    assert "digests" not in err
    (tmp_path / "a.jsonl").touch()
    assert "exists" in audit(certified)[2]
    (tmp_path / "a.jsonl").unlink()
    none = tmp_path / "none.jsonl"
    none.write_text(certified.read_text().splitlines()[0] + "\n")
    assert "nothing to attack" in audit(none)[2]


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_attack_on_a_half_space_is_nearly_optimal(sharpness):
    """The best direction is the normal of the plane: the perturbation has all but a few per cent of it."""
    shape, radius = (1, 8, 8), 0.5
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    normal /= normal.norm()
    image = torch.full(shape, 0.5)

    def model(x):
        side = sharpness * ((x - image) * normal).flatten(1).sum(dim=1)
        return torch.stack([1 - side, side - 1, torch.full_like(side, -5.0)], dim=1)

    delta = strongest_perturbation(
        model, image, 0, radius, sigma=0.25, effort=Effort(4, 30, 32), generator=torch.Generator().manual_seed(1)
    )  # fmt: skip
    assert float(delta.norm()) <= radius * (1 + 1e-5)
    assert float((delta * normal).sum()) >= 0.97 * radius


def test_points_lie_inside_whatever_the_rounding():
    """Random images, directions and radii, far too long perturbations included."""
    rng = np.random.default_rng(0)
    for radius in (1e-3, 0.01, 0.3, 2.0):
        image = (rng.integers(0, 256, (3, 8, 8)) / np.float32(255)).astype(np.float32)
        delta = rng.normal(size=image.shape) * radius
        point, distance = place(image, delta, radius, "gaussian")
        assert np.linalg.norm(point.astype(np.float64) - image) == distance <= SHARE * radius
        assert distance > 0.999 * SHARE * radius
        point, distance = place(image, delta, radius, "grid")
        steps = np.rint(255 * point.astype(np.float64)) - np.rint(255 * image.astype(np.float64))
        assert int((steps**2).sum()) <= (255 * Fraction(radius)) ** 2
        assert distance == pytest.approx(np.sqrt((steps**2).sum()) / 255)
        assert 0 <= point.min() <= point.max() <= 1


def test_false_accusations_are_as_rare_as_promised():
    """At the null, two equally likely classes, the p-value is at most the level as often as the level says."""
    from scipy import stats

    votes = np.arange(201)
    p_values = np.array([outvoted_p_value(int(k), int(200 - k)) for k in votes])
    for level in (0.1, 0.01, 0.001):
        assert stats.binom.pmf(votes, 200, 0.5)[p_values <= level].sum() <= level
    assert outvoted_p_value(0, 0) == 1
