"""Against certification logs that the reference implementations' authors published."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import smoothmix_deploy as smx
from smoothmix_deploy.statistics.bounds import certified_radius, clopper_pearson_lower

LOGS = Path(os.environ.get("SMX_REFERENCE_LOGS", Path(__file__).parents[2] / "shared" / "reference-logs"))
FILES = sorted(path for path in LOGS.rglob("*") if path.is_file() and path.name not in ("README.md", "LICENSE"))
pytestmark = pytest.mark.skipif(not FILES, reason=f"no published logs (set SMX_REFERENCE_LOGS); looked in {LOGS.name}")

N, ALPHA = 100_000, 0.001

# ACR of arXiv 2111.09277's CIFAR-10 rows and of single MNIST seeds, to the digits published.
PUBLISHED = {
    "cifar10/smoothmix/noise_0.25": "0.553",
    "cifar10/smoothmix/noise_0.25_adv": "0.548",
    "cifar10/smoothmix/noise_0.5": "0.712",
    "mnist/smoothmix/smix_1.0_2_m1/tau_5.0/num_4/21/noise_0.25": "0.933",
    "mnist/smoothmix/smix_1.0_4_m0/tau_5.0/num_4/21/noise_0.5": "1.693",
    "mnist/smoothmix/smix_1.0_4_m1/tau_1.0/num_4/21/noise_0.5": "1.693",
    "mnist/salman/pgd_255.0_10_10/num_4/noise_0.25_3762": "0.932",
    "mnist/consistency/cohen/num_2/lbd_5.0/eta_0.5/noise_1.00_1": "1.738",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_acr(name):
    """The report gives the published number."""
    path = LOGS / "smoothmix" / name
    if not path.exists():
        pytest.skip(f"{name} is not among the logs")
    table = smx.report(path).table("csv").splitlines()
    assert dict(zip(table[0].split(","), table[1].split(","), strict=True))["ACR"] == PUBLISHED[name]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(LOGS)))
def test_every_log_is_summarised_like_a_spreadsheet_would(path):
    """Certified accuracy, ACR, abstentions of every file, recomputed with the csv module alone; sigma from the name."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    (found,) = smx.report(path, radii=[0, 0.25, 1.5]).record()["files"]
    right = [float(row["radius"]) for row in rows if row["correct"] == "1"]
    assert found["images"] == len(rows)
    assert found["acr"] == pytest.approx(sum(right) / len(rows), abs=1e-12)
    assert found["abstained"] == pytest.approx(sum(row["predict"] == "-1" for row in rows) / len(rows))
    for radius, label in ((0, "0"), (0.25, "0.25"), (1.5, "1.5")):
        assert found["certified"][label] == pytest.approx(sum(r >= radius for r in right) / len(rows))
    assert found["sigma"] == float(path.name.split("_")[1])


def printed_radii(bounds, sigma):
    """Every radius that the reference can print, given the lower bound of each count."""
    return {f"{certified_radius(float(p), sigma):.3}" for p in bounds if p > 0.5}


def published(path):
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["predict"] != "-1"]
    return {f"{float(row['radius']):.3}" for row in rows}


@pytest.fixture(scope="module")
def counts():
    return np.arange(N // 2, N + 1)


# Made with alpha = 0.01, although their folder's protocol says 0.001: radii of 0.978 at sigma 0.25 exceed what a
# unanimous vote of 100,000 can prove at 0.001 (0.953), and all of them are attainable at 0.01.
OTHER_ALPHA = {f"cohen/cifar10/resnet110/noise_{sigma}/test/sigma_{sigma}": 0.01 for sigma in ("0.25", "0.50", "1.00")}


def bounds_at(counts, alpha):
    return [clopper_pearson_lower(int(k), N, alpha) for k in counts]


def test_every_published_radius_is_attainable(counts):
    """Each printed radius is sigma * ppf(bound) of some count, under our bound."""
    bounds = {alpha: bounds_at(counts, alpha) for alpha in (ALPHA, 0.01)}
    attainable = {}
    for path in FILES:
        sigma = float(path.name.split("_")[1])
        alpha = OTHER_ALPHA.get(path.relative_to(LOGS).as_posix(), ALPHA)
        if (sigma, alpha) not in attainable:
            attainable[sigma, alpha] = printed_radii(bounds[alpha], sigma)
        assert published(path) <= attainable[sigma, alpha], path


@pytest.mark.parametrize("name", OTHER_ALPHA)
def test_logs_of_another_alpha_are_told_apart(counts, name):
    """The check can fail: at the alpha that these three logs are said to have, they are not attainable."""
    if not (LOGS / name).exists():
        pytest.skip(f"{name} is not among the logs")
    assert not published(LOGS / name) <= printed_radii(bounds_at(counts, ALPHA), float(name.split("_")[-1]))


def test_wrong_bounds_would_not_do(counts):
    """Neither a two-sided alpha nor the Wilson interval attains what was published."""
    z = stats.norm.ppf(1 - ALPHA)
    share = counts / N
    spread = z * np.sqrt(share * (1 - share) / N + z * z / (4 * N * N))
    wilson = (share + z * z / (2 * N) - spread) / (1 + z * z / N)
    two_sided = stats.beta.ppf(ALPHA / 2, counts, N - counts + 1)
    path = LOGS / "smoothmix/mnist/smoothmix/smix_1.0_4_m1/tau_1.0/num_4/21/noise_0.5"
    for wrong in (wilson, two_sided):
        assert not published(path) <= printed_radii(wrong, 0.5)
