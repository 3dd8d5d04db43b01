"""The page for people: true, rounded down, self-contained, and deaf to what a file's strings try."""

import html
import json
import re
from html.parser import HTMLParser

import pytest
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.certificates import read_certificates
from smoothmix_deploy.reporting.certificate import down

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}&lt;b&gt;"


class Page(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def certs(digits_export, tmp_path_factory):
    """A file of 12 images, some abstaining."""
    out = tmp_path_factory.mktemp("page") / "c.jsonl"
    smx.certify(digits_export, n=200, stop=12, sigma=0.4, seed=3, batch_size=64, out=out)
    return out


def page(certs, folder, **options):
    """The page, parsed."""
    return Page(smx.certificate(certs, out=folder / "page.html", **options).read_text())


def test_page_of_an_image(certs, tmp_path):
    """What the line says, the votes, the digests; the picture is the data set's."""
    content = read_certificates(certs)
    c = next(c for c in content.certificates if c.radius > 0)
    found = page(certs, tmp_path, index=c.index, data="digits")
    text = " ".join(found.text.split())
    m = content.manifest
    assert f"Inside an L2 ball of radius {down(c.radius)} around image {c.index} of digits" in text
    assert f"answer is {c.prediction}, with probability at least 1 \N{MINUS SIGN} {m.alpha}" in text
    for needed in (
        m.artefact["sha256"],
        m.data["digest"],
        m.key,
        content.chain,
        f"sigma {m.sigma}",
        down(c.p_lower, 6),
    ):
        assert needed in text
    assert all(str(votes) in text for votes in c.counts.values())
    assert "chosen by the user" in text
    assert re.search(r"Signature\s*none", text)
    (picture,) = (attributes["src"] for tag, attributes in found.tags if tag == "img")
    import base64
    import io

    import numpy as np
    from PIL import Image

    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
    from smoothmix_deploy.data import load_data

    image = load_data("digits", root=None, split="test").image(c.index)
    assert np.array_equal(shown, np.rint(image[0] * 255).astype(np.uint8))


def test_page_of_an_abstention(certs, tmp_path):
    """Nothing is proved, and nothing else is said."""
    c = next(c for c in read_certificates(certs).certificates if c.prediction < 0)
    found = page(certs, tmp_path, index=c.index)
    assert "nothing is proved" in found.text
    assert "Inside an L2 ball" not in found.text
    assert not [tag for tag, _ in found.tags if tag == "img"]


def test_page_of_a_file(certs, tmp_path):
    """The report's figures."""
    text = page(certs, tmp_path).text
    summary = smx.report(certs).files[0].summary
    assert down(summary.acr, 3) in text
    assert "12 images of digits" in text
    certs_part = tmp_path / "part.jsonl"
    certs_part.write_bytes(b"".join(certs.read_bytes().splitlines(keepends=True)[:1]))
    assert (
        "0 images of digits (test), of 12 selected: the others have no certificate" in page(certs_part, tmp_path).text
    )


def test_page_loads_nothing(certs, tmp_path):
    """No script, no link, no address but data: pictures; a content security policy that says so."""
    found = page(certs, tmp_path, index=0, data="digits")
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "form", "a"})
    addresses = [v for _, attributes in found.tags for k, v in attributes.items() if k in ("src", "href")]
    assert all(address.startswith("data:image/png;base64,") for address in addresses)


def hostile_file(certs, path):
    """Every free text in the manifest is an attack."""
    manifest, *lines = certs.read_text().splitlines()
    record = json.loads(manifest)
    record["class_names"] = [HOSTILE + str(k) for k in range(10)]
    record["artefact"] |= {"name": HOSTILE, "precision": HOSTILE, "weights_sha256": HOSTILE, "sha256": HOSTILE}
    record["engine"] |= {"name": HOSTILE, "version": HOSTILE, "device": HOSTILE}
    record["data"] |= {"name": HOSTILE, "split": HOSTILE, "digest": HOSTILE}
    record["created"] = HOSTILE
    path.write_text("\n".join([json.dumps(record, ensure_ascii=False), *lines]) + "\n")
    return path


@pytest.mark.parametrize("index", [0, None], ids=["image", "file"])
def test_hostile_strings_stay_text(certs, tmp_path, index):
    """The tags are those of a page of the good file; the strings are shown as they are."""
    name = tmp_path / '<img src=x onerror="alert(1)">.jsonl'
    bad = page(hostile_file(certs, name), tmp_path, index=index)
    good = page(certs, tmp_path, index=index)
    assert [tag for tag, _ in bad.tags] == [tag for tag, _ in good.tags]
    assert [sorted(attributes) for _, attributes in bad.tags] == [sorted(attributes) for _, attributes in good.tags]
    assert HOSTILE in bad.text
    assert "49" not in re.findall(r"\{\{ 7 \* 7 \}\}|49\b", bad.text)
    assert html.escape(HOSTILE, quote=False) not in bad.text


def test_numbers_are_rounded_down():
    """Never more than was proved."""
    assert down(0.29999, 4) == "0.2999"
    assert down(0.9999999, 6) == "0.999999"
    assert down(0.3, 1) == "0.3"
    assert down(67.9, 0) == "67"


def test_what_does_not_verify_gets_no_page(certs, tmp_path, capsys):
    """Exit code 3 for a forged file, 2 for what is not there; no page is written."""
    forged = tmp_path / "f.jsonl"
    forged.write_text(certs.read_text().replace('"correct": true', '"correct": false', 1))
    out = tmp_path / "p.html"
    for code, words in (
        (3, (forged,)), (2, (certs, "--index", 99)), (2, (tmp_path / "nowhere",)), (2, (certs, "--out", certs)),
        (2, (certs, "--index", 0, "--data", "npz:nowhere")),
    ):  # fmt: skip
        assert (
            cli._run([str(w) for w in ("certificate", *words, *(() if "--out" in words else ("--out", out)))], False)
            == code
        )
        assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
    read_certificates(certs)


def test_other_images_are_not_shown(certs, tmp_path):
    """--data must be the set that was certified."""
    import numpy as np

    np.savez(tmp_path / "d.npz", x=np.zeros((360, 8, 8), np.uint8), y=np.arange(360) % 10)
    with pytest.raises(smx.CheckFailed, match="digest differs"):
        page(certs, tmp_path, index=0, data=f"npz:{tmp_path / 'd.npz'}")
