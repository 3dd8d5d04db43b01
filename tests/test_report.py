"""Reports: the numbers, the formats, the pictures."""

import csv
import io
import json

import pytest

import smoothmix_deploy as smx

LOG = """idx\tlabel\tpredict\tradius\tcorrect\ttime
0\t7\t7\t0.953\t1\t0:00:00.591566
1\t2\t2\t0.25\t1\t0:00:00.3
2\t1\t-1\t0.0\t0\t0:00:00.3
3\t0\t4\t0.8\t0\t0:00:00.3
"""


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "noise_0.25_1234"
    path.write_text(LOG)
    return path


def test_numbers_by_hand(log):
    """ACR counts wrong answers as 0; certified accuracy counts radii equal to r."""
    record = smx.report(log, radii=[0, 0.25, 0.5, 0.953, 1]).record()
    (found,) = record["files"]
    assert found["acr"] == pytest.approx((0.953 + 0.25) / 4)
    assert found["accuracy"] == 0.5
    assert found["abstained"] == 0.25
    assert found["certified"] == {"0": 0.5, "0.25": 0.5, "0.5": 0.25, "0.953": 0.25, "1": 0.0}
    assert found["sigma"] == 0.25
    assert found["images"] == 4
    assert found["mean_samples"] is None


def test_usual_radii(log):
    """0, 0.25, ... as far as anything correct is proved."""
    assert smx.report(log).radii == [0, 0.25, 0.5, 0.75]


def test_formats_hold_the_same_numbers(log):
    """Every format, two files."""
    report = smx.report(log, log)
    assert report.table("csv").splitlines()[0].startswith("file,sigma,images,ACR")
    rows = list(csv.DictReader(io.StringIO(report.table("csv"))))
    assert len(rows) == 2
    assert rows[0]["ACR"] == "0.301"
    for name, marks in (("table", "ACR"), ("markdown", "| ---"), ("latex", r"\toprule")):
        text = report.table(name)
        assert marks in text
        assert text.count("0.301") == 2
    assert r"noise\_0.25\_1234" in report.table("latex")
    with pytest.raises(smx.BadInput, match="--format"):
        report.table("excel")


def test_pictures_and_page(log, digits_export, tmp_path):
    """Plots open as what they are; the page loads nothing and escapes what it shows."""
    from PIL import Image

    certs = tmp_path / "<b>certs.jsonl"
    smx.certify(digits_export, n=50, stop=5, out=certs)
    smx.report(certs, log, plot=tmp_path / "curve.png", html=tmp_path / "page.html")
    assert Image.open(tmp_path / "curve.png").size[0] > 800
    page = (tmp_path / "page.html").read_text()
    assert "<b>certs" not in page
    assert "&lt;b&gt;certs" in page
    assert "http" not in page.replace("http-equiv", "")
    for suffix, magic in ((".svg", b"<?xml"), (".pdf", b"%PDF")):
        smx.report(log, plot=tmp_path / f"curve{suffix}")
        assert (tmp_path / f"curve{suffix}").read_bytes().startswith(magic)
    with pytest.raises(smx.BadInput, match="--plot"):
        smx.report(log, plot=tmp_path / "curve.docx")


def test_unfinished_file_is_reported(digits_export, tmp_path):
    """A running or killed certification can be looked at; its torn line is left out."""
    certs = tmp_path / "c.jsonl"
    smx.certify(digits_export, n=50, stop=5, out=certs)
    whole = certs.read_text()
    certs.write_text(whole[:-20])
    assert smx.report(certs).files[0].summary.images == 4


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "line 1"),
        ("a\tb\n1\t2\n", "line 1"),
        (LOG + "4\t1\n", "line 6"),
        (LOG + "4\t1\t1\tnan\t1\t0\n", "line 6"),
        (LOG + "4\t1\t1\t0.5\t3\t0\n", "line 6"),
        ('{"kind": "manifest"}\n', "line 1"),
        (json.dumps([1, 2]), "line 1"),
    ],
)
def test_bad_files_name_their_line(tmp_path, text, match):
    """What is neither format, or damaged."""
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(smx.BadInput, match=match):
        smx.report(path)
