"""A noise key that was committed to before sampling, and what opens the commitment."""

import json

import pytest
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.certificates import read_certificates

CHALLENGE = "beacon 4711: 5f2e"


@pytest.fixture(scope="module")
def committed(digits_export, tmp_path_factory):
    """(key file, commitment, certificate file)."""
    folder = tmp_path_factory.mktemp("committed")
    made = smx.commit(digits_export, out=folder / "key.json")
    out = folder / "c.jsonl"
    smx.certify(digits_export, n=100, stop=4, batch_size=64, key_file=folder / "key.json", challenge=CHALLENGE, out=out)
    return folder / "key.json", made.commitment, out


def test_commitment_is_opened(committed, digits_export):
    """By verification, which finds what was published; sampling again gives the same votes."""
    key_file, commitment, out = committed
    found = smx.verify(out, commitment=commitment, challenge=CHALLENGE, artefact=digits_export, rerun=2)
    assert (found.commitment, found.challenge) == (commitment, CHALLENGE)
    assert smx.verify(out, commitment=commitment.upper()).commitment == commitment
    assert key_file.stat().st_mode & 0o077 == 0
    manifest = read_certificates(out).manifest
    assert not manifest.key_chosen_by_user
    assert json.loads(key_file.read_text())["secret"] == manifest.commitment["secret"]


def test_commitment_is_as_documented(committed):
    """SHA-256 of JSON lists."""
    import hashlib

    _, commitment, out = committed
    manifest = read_certificates(out).manifest
    secret, artefact = manifest.commitment["secret"], manifest.artefact["sha256"]

    def digest(*parts):
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    assert commitment == digest("smoothmix_deploy noise commitment", secret, artefact)
    assert manifest.key == digest("smoothmix_deploy noise key", secret, CHALLENGE)[:32]


def test_every_part_makes_another_key(committed, digits_export, tmp_path):
    """The challenge and the secret; the same ones give the same certificates."""
    key_file, _, out = committed
    keys = {read_certificates(out).manifest.key}
    smx.commit(digits_export, out=tmp_path / "other.json")
    runs = (("a", key_file, None), ("b", key_file, CHALLENGE + "x"), ("c", tmp_path / "other.json", CHALLENGE))
    for name, file, challenge in runs:
        smx.certify(
            digits_export, n=100, stop=1, batch_size=64, key_file=file, challenge=challenge, out=tmp_path / name
        )
        keys.add(smx.verify(tmp_path / name) and read_certificates(tmp_path / name).manifest.key)
    assert len(keys) == 4
    smx.certify(
        digits_export, n=100, stop=4, batch_size=64, key_file=key_file, challenge=CHALLENGE, out=tmp_path / "again"
    )
    votes = [[(c.counts, c.radius) for c in read_certificates(path).certificates] for path in (out, tmp_path / "again")]
    assert votes[0] == votes[1]


def test_what_was_not_published_is_refused(committed, digits_export, tmp_path):
    """Another commitment, another challenge, none at all."""
    _, commitment, out = committed
    for wrong in ({"commitment": "0" * 64}, {"challenge": "x"}, {"commitment": commitment, "challenge": ""}):
        with pytest.raises(smx.CheckFailed, match="line 1"):
            smx.verify(out, **wrong)
    with pytest.raises(smx.BadInput, match="64 hex digits"):
        smx.verify(out, commitment="x")
    smx.certify(digits_export, n=100, stop=1, batch_size=64, out=tmp_path / "plain.jsonl")
    with pytest.raises(smx.CheckFailed, match="not committed to"):
        smx.verify(tmp_path / "plain.jsonl", commitment=commitment)


@pytest.mark.parametrize(
    "values",
    [{"secret": "0" * 64}, {"challenge": "x"}, {"challenge": None}, {"commitment": "0" * 64}, {"secret": 5}, {"secret": "\ud800"}],
    ids=["secret", "challenge", "no challenge", "commitment", "type", "surrogate"],
)  # fmt: skip
def test_disclosure_that_does_not_open_it(committed, values, tmp_path):
    """Every part is in the hash."""
    manifest, *lines = committed[2].read_text().splitlines()
    record = json.loads(manifest)
    record["commitment"] |= values
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([json.dumps(record), *lines]) + "\n")
    with pytest.raises(smx.CheckFailed, match="line 1"):
        smx.verify(path)


def test_other_artefact_is_refused(committed, digits_run, tmp_path):
    """The secret was drawn for one."""
    with pytest.raises(smx.BadInput, match="committed for SHA-256"):
        smx.certify(digits_run, engine="torch", n=100, stop=1, key_file=committed[0], out=tmp_path / "x")


def test_resumption_keeps_the_key(committed, digits_export, tmp_path):
    """With the key file or without; another one is refused."""
    key_file, _, out = committed
    part = tmp_path / "part.jsonl"
    lines = out.read_bytes().splitlines(keepends=True)
    settings = {"n": 100, "stop": 4, "batch_size": 64, "out": part, "resume": True}
    for extra in ({}, {"key_file": key_file, "challenge": CHALLENGE}):
        part.write_bytes(b"".join(lines[:3]))
        smx.certify(digits_export, **settings, **extra)
        counts = [[c.counts for c in read_certificates(path).certificates] for path in (out, part)]
        assert counts[0] == counts[1]
        assert smx.verify(part, challenge=CHALLENGE).certificates == 4
    smx.commit(digits_export, out=tmp_path / "other.json")
    part.write_bytes(b"".join(lines[:3]))
    for other in ({"key_file": key_file}, {"key_file": tmp_path / "other.json", "challenge": CHALLENGE}):
        with pytest.raises(smx.BadInput, match="was begun with"):
            smx.certify(digits_export, **settings, **other)


def test_options_that_do_not_fit(committed, digits_export, tmp_path, capsys):
    """Exit code 2, one line."""
    key_file = committed[0]
    (tmp_path / "junk.json").write_text("{}")
    record = json.loads(key_file.read_text())
    (tmp_path / "edited.json").write_text(json.dumps({**record, "secret": "0" * 64}))
    for arguments, said in (
        (("--challenge", "x"), "goes with --key-file"),
        (("--key-file", key_file, "--seed", 1), "does not go with --seed"),
        (("--key-file", key_file, "--challenge", ""), "printable text"),
        (("--key-file", key_file, "--challenge", "a\nb"), "printable text"),
        (("--key-file", tmp_path / "nowhere.json"), "no such file"),
        (("--key-file", tmp_path / "junk.json"), "is missing"),
        (("--key-file", tmp_path / "edited.json"), "not that of its secret"),
    ):
        command = ["certify", digits_export, "--n", 100, "--stop", 1, "--out", tmp_path / "o", *arguments]
        assert cli._run([str(word) for word in command], debug=False) == 2
        err = capsys.readouterr().err
        assert (err.count("\n"), said in err) == (1, True), err
        assert not (tmp_path / "o").exists()
    with pytest.raises(smx.BadInput, match="exists"):
        smx.commit(digits_export, out=key_file)
