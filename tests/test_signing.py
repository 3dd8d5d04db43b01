"""A signed file: no byte of it can change unnoticed, and everything that reads certificate files reads it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from smx_cli import main as cli

import smoothmix_deploy as smx
from smoothmix_deploy.certificates import CertificateWriter, read_certificates, reading

pytest.importorskip("cryptography", reason="signatures need the cryptography package")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "verify_throughput.py"


@pytest.fixture(scope="module")
def simulate():
    """Writes certificate files with simulated votes: the benchmark's."""
    spec = importlib.util.spec_from_file_location("verify_throughput", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_files


def write_key(folder, name, key=None, password=None):
    """(private, public) PEM files."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, form, hidden))
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem", folder / f"{name}.pub"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A key pair."""
    return write_key(tmp_path_factory.mktemp("keys"), "key")


@pytest.fixture(scope="module")
def plain(simulate, tmp_path_factory):
    """A small file of each rule: a manifest and two images."""
    return simulate(2, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def signed(plain, keys, tmp_path):
    """A signed copy of the file of the fixed rule."""
    path = tmp_path / "c.jsonl"
    path.write_bytes(plain["fixed"].read_bytes())
    smx.sign(path, key=keys[0])
    return path


def run(*arguments):
    """Exit code of a command, in this process."""
    return cli._run([str(argument) for argument in arguments], debug=False)


@pytest.fixture
def refused(keys, monkeypatch):
    """The message with which these bytes fail to verify; it names a line. Read from memory: thousands are tried."""
    pem = {path: path.read_bytes() for path in keys}
    files = {}
    for owner, name, known in ((Path, "read_bytes", pem), (reading, "_bytes", files)):
        monkeypatch.setattr(
            owner,
            name,
            lambda path, known=known, read=getattr(owner, name): known[path] if path in known else read(path),
        )

    def verify(data, public=keys[1]):
        files[Path("x.jsonl")] = data
        with pytest.raises(smx.CheckFailed) as caught:
            smx.verify("x.jsonl", key=public)
        assert str(caught.value).startswith("x.jsonl, line ")
        return str(caught.value)

    return verify


def test_sign_and_verify(signed, plain, keys):
    """The lines are as before, the seal says who and what."""
    before, after = read_certificates(plain["fixed"]), read_certificates(signed)
    assert signed.read_bytes().startswith(plain["fixed"].read_bytes())
    assert (after.manifest, after.certificates) == (before.manifest, before.certificates)
    assert (after.chain, after.sha256) == (before.chain, before.sha256)
    found = smx.verify(signed, key=keys[1])
    assert (found.key_checked, found.chain, found.signed_by) == (True, before.chain, after.seal.fingerprint)
    assert smx.verify(signed).key_checked is False
    assert smx.verify(plain["fixed"]).signed_by is None


def test_chain_digest_is_as_documented(plain):
    """h_0 = 32 zero bytes, h_i = SHA-256(h_(i-1) + line i)."""
    import hashlib

    digest = bytes(32)
    for line in plain["grid"].read_bytes().splitlines(keepends=True):
        digest = hashlib.sha256(digest + line).digest()
    assert smx.verify(plain["grid"]).chain == digest.hex()


def test_any_changed_byte_is_caught(signed, refused):
    """Every position of the file, with several other bytes."""
    good = signed.read_bytes()
    for i, byte in enumerate(good):
        for other in {byte ^ 1, byte ^ 0x20, ord("0"), ord(" ")} - {byte}:
            refused(good[:i] + bytes([other]) + good[i + 1 :])


def test_any_byte_left_out_or_added_is_caught(signed, refused):
    """At every position; also the file cut off anywhere."""
    good = signed.read_bytes()
    for i in range(len(good)):
        refused(good[:i] + good[i + 1 :])
        refused(good[:i])
    for i in range(len(good) + 1):
        for added in (b" ", b"0"):
            refused(good[:i] + added + good[i:])
    for added in (b"\n", b"\r", b"\0", b"\n\n", b"{}\n"):
        refused(good + added)
        refused(added + good)
    refused(good.replace(b"\n", b"\r\n"))


def test_lines_moved_doubled_left_out_or_replaced(signed, refused):
    """Whole lines, each of them good; the first bad one is named."""
    lines = signed.read_bytes().splitlines(keepends=True)
    for i in range(len(lines)):
        refused(b"".join(lines[:i] + lines[i + 1 :]))
        refused(b"".join([*lines[: i + 1], *lines[i:]]))
        for j in range(i):
            moved = list(lines)
            moved[i], moved[j] = lines[j], lines[i]
            refused(b"".join(moved))
    assert "line 5: a line after the seal" in refused(b"".join([*lines, lines[2]]))
    # a line that follows from its votes, but is another one
    other = json.loads(lines[2])
    other["seconds"] += 1
    exchanged = [*lines[:2], json.dumps(other).encode() + b"\n", *lines[3:]]
    assert "line 4: what was signed has chain digest" in refused(b"".join(exchanged))


def test_another_signer(signed, keys, plain, tmp_path, refused):
    """A file that somebody else signed, and one whose seal claims another key."""
    mine, theirs = write_key(tmp_path, "other")
    with pytest.raises(smx.CheckFailed, match="line 4: signed by another key"):
        smx.verify(signed, key=theirs)
    other = tmp_path / "other.jsonl"
    other.write_bytes(plain["fixed"].read_bytes())
    smx.sign(other, key=mine)
    assert smx.verify(other, key=theirs).key_checked
    seals = [json.loads(path.read_bytes().splitlines()[-1]) for path in (signed, other)]
    mixed = {**seals[0], "public_key": seals[1]["public_key"]}
    lines = signed.read_bytes().splitlines(keepends=True)
    altered = b"".join([*lines[:-1], json.dumps(mixed).encode() + b"\n"])
    assert "line 4: the signature does not hold" in refused(altered)
    assert "not signed" in refused(b"".join(lines[:-1]))


def test_seal_that_lies(plain, keys, refused):
    """Its owner signed it, but the lines above are others."""
    from smoothmix_deploy.certificates.lines import text_of
    from smoothmix_deploy.certificates.signature import load_private_key, sealed

    content, private = read_certificates(plain["fixed"]), load_private_key(keys[0])
    for lines, complete, chain in ((2, True, content.chain), (3, False, content.chain), (3, True, "0" * 64)):
        seal = sealed(lines, complete, chain, private)
        assert "line 4" in refused(plain["fixed"].read_bytes() + text_of(seal).encode())


def test_signed_files_are_finished(signed, keys):
    """No second seal, nothing added."""
    before = signed.read_bytes()
    with pytest.raises(smx.BadInput, match="signed already"):
        smx.sign(signed, key=keys[0])
    from smoothmix_deploy.certification.resumption import file_to_resume

    with pytest.raises(smx.BadInput, match="is signed"):
        file_to_resume(signed, resume=True)
    assert signed.read_bytes() == before


def test_a_file_that_is_being_written_is_not_signed(plain, keys, tmp_path):
    """Its run would go on writing to a file that is no longer there. Links stay links."""
    path, link = tmp_path / "c.jsonl", tmp_path / "link.jsonl"
    path.write_bytes(plain["fixed"].read_bytes())
    link.symlink_to(path)
    with CertificateWriter(path, read_certificates(path)), pytest.raises(smx.BadInput, match="another smx process"):
        smx.sign(path, key=keys[0])
    assert path.read_bytes() == plain["fixed"].read_bytes()
    smx.sign(link, key=keys[0])
    assert link.is_symlink()
    assert smx.verify(path, key=keys[1]).key_checked


def test_damaged_seal_is_no_torn_tail(signed):
    """What a killed run leaves is dropped; a seal is not."""
    signed.write_bytes(signed.read_bytes().replace(b'"lines": 3', b'"lines": x'))
    with pytest.raises(smx.BadInput, match="line 4"):
        read_certificates(signed, allow_torn_tail=True)


def test_unfinished_files(plain, keys, tmp_path):
    """Signed only on request; the seal says it."""
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"".join(plain["fixed"].read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(smx.BadInput, match=r"1 of 2 images.*--unfinished"):
        smx.sign(path, key=keys[0])
    assert smx.sign(path, key=keys[0], unfinished=True).complete is False
    assert smx.verify(path, key=keys[1]).certificates == 1
    assert read_certificates(path).seal.complete is False


def test_only_good_files_are_signed(plain, keys, tmp_path):
    """Nobody stands for a radius that the votes do not give."""
    path = tmp_path / "c.jsonl"
    data = plain["fixed"].read_bytes().replace(b'"correct": ', b'"correct":  ', 1)
    path.write_bytes(data)
    with pytest.raises(smx.CheckFailed, match="line 2: not byte for byte"):
        smx.sign(path, key=keys[0])
    assert path.read_bytes() == data


def test_keys_that_are_none(signed, plain, keys, tmp_path, capsys):
    """One line, exit code 2."""
    (tmp_path / "junk.pem").write_text("junk")
    curve, curve_public = write_key(tmp_path, "curve", ec.generate_private_key(ec.SECP256R1()))
    hidden, _ = write_key(tmp_path, "hidden", password=b"x")
    target = tmp_path / "t.jsonl"
    target.write_bytes(plain["fixed"].read_bytes())
    for key, said in (
        (tmp_path / "nowhere.pem", "cannot be read"), (tmp_path / "junk.pem", "not a private key"),
        (keys[1], "not a private key"), (curve, "not an Ed25519 key"), (hidden, "is encrypted"),
    ):  # fmt: skip
        assert run("sign", target, "--key", key) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), said in err) == ("", 1, True), err
    for key, said in (
        (tmp_path / "nowhere.pem", "cannot be read"), (tmp_path / "junk.pem", "not a public key"),
        (keys[0], "is a private key"), (curve_public, "not an Ed25519 key"),
    ):  # fmt: skip
        assert run("verify", signed, "--key", key) == 2
        assert said in capsys.readouterr().err
    assert target.read_bytes() == plain["fixed"].read_bytes()


def test_openssl_as_documented(plain, tmp_path, capsys):
    """The commands of the README, and the fingerprint by hand."""
    if subprocess.run(["openssl", "version"], capture_output=True).returncode:
        pytest.skip("no openssl on this machine")

    def openssl(*arguments):
        return subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=tmp_path).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "private.pem")
    openssl("pkey", "-in", "private.pem", "-pubout", "-out", "public.pem")
    path = tmp_path / "c.jsonl"
    path.write_bytes(plain["fixed"].read_bytes())
    assert run("sign", path, "--key", tmp_path / "private.pem", "--json") == 0
    signed_by = json.loads(capsys.readouterr().out.splitlines()[-1])["signed_by"]
    assert run("verify", path, "--key", tmp_path / "public.pem", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["signed_by"], found["key_checked"]) == (signed_by, True)
    import hashlib

    der = openssl("pkey", "-pubin", "-in", "public.pem", "-outform", "DER")
    assert hashlib.sha256(der).hexdigest() == signed_by


def test_without_cryptography(signed, plain, keys, monkeypatch, capsys):
    """Named, with its extra, and never passed over; unsigned files do not need it."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for command in (
        ("sign", plain["grid"], "--key", keys[0]),
        ("verify", signed),
        ("verify", signed, "--key", keys[1]),
    ):
        assert run(*command) == 4
        assert "smoothmix-deploy[sign]" in capsys.readouterr().err
    assert run("verify", plain["fixed"]) == 0


def test_report_reads_signed_files(signed, plain):
    """The same figures."""
    figures = [{**smx.report(path).record()["files"][0], "file": ""} for path in (signed, plain["fixed"])]
    assert figures[0] == figures[1]


def test_verification_imports_no_torch(signed, keys, plain):
    """Nor a runtime, whatever the rule."""
    files = [*plain.values(), signed]
    code = (
        "import sys, smoothmix_deploy as smx\n"
        f"for path in {[str(path) for path in files]!r}: smx.verify(path)\n"
        f"smx.verify({str(signed)!r}, key={str(keys[1])!r})\n"
        f"smx.certificate({str(signed)!r}, out={str(signed) + '.html'!r}, index=1)\n"
        "print({'torch', 'onnx', 'onnxruntime', 'matplotlib', 'scipy.stats'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "set()"
