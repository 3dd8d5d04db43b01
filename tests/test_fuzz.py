"""Readers of foreign files, fuzzed: whatever the bytes, the result or a typed error comes out, never anything else.

Files are damaged copies of good ones (bytes, or JSON values, replaced) and arbitrary ones. Everything is read in this
process except what an engine would run: engines try a stranger's file in a child first (see test_foreign_onnx).
"""

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smx_cli.terminal import numbers

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.certificates import read_certificates
from smoothmix_deploy.certification.partial import PartialVotes
from smoothmix_deploy.certification.verify import verify
from smoothmix_deploy.data import load_data
from smoothmix_deploy.data.image_set import image_to_array, open_image
from smoothmix_deploy.files import parse_json, read_json
from smoothmix_deploy.models.run_folder import load_model, read_config
from smoothmix_deploy.reporting.report import report
from smoothmix_deploy.training.recipes import HyperParameters, override

EXAMPLES = pytest.mark.parametrize("examples", [60, pytest.param(1000, marks=pytest.mark.slow)])
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from([10**400, -(10**30), 2**63, "\ud800", "\0", "\x1b[31m", "../../x", "a" * 5000, 1e308, 5e-324]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=2),
)  # fmt: skip


def fuzz(check, *strategies, examples):
    """`check` on that many examples. Always the same ones in the fast tests: a failure there is news."""
    runner = settings(max_examples=examples, deadline=None, derandomize=examples < 100, database=None,
                      suppress_health_check=list(HealthCheck))  # fmt: skip
    runner(given(*strategies)(check))()


@st.composite
def damage(draw, content):
    """`content` cut, extended, or with a few bytes replaced; now and then something else altogether."""
    data = bytearray(content)
    kind = draw(st.sampled_from(["replace", "replace", "cut", "insert", "other"]))
    if kind == "other":
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)) | st.integers(0, min(400, len(data) - 1)))
        if kind == "cut":
            del data[at:]
            break
        data[at : at + (kind == "replace")] = draw(st.binary(min_size=1, max_size=4))
    return bytes(data)


@st.composite
def changed(draw, record):
    """A JSON object with one value, at any depth, replaced or removed."""
    record = json.loads(json.dumps(record))
    holder = record
    while True:
        key = draw(st.sampled_from(sorted(holder)) if isinstance(holder, dict) else st.integers(0, len(holder) - 1))
        if isinstance(holder[key], dict | list) and holder[key] and draw(st.booleans()):
            holder = holder[key]
            continue
        if isinstance(holder, dict) and draw(st.integers(0, 9)) == 0:
            del holder[key]
        else:
            holder[key] = draw(ODD)
        return json.dumps(record).encode()


def only_typed(function):
    """Runs it; SmxErrors are what is expected of a bad file."""
    with contextlib.suppress(smx.SmxError):
        function()


@EXAMPLES
@pytest.mark.parametrize("how", ["bytes", "values"])
def test_certificate_files(how, certs, tmp_path, examples):
    """read, verify and report."""
    path, whole = tmp_path / "c.jsonl", certs.read_bytes()
    first, second, *rest = whole.splitlines()

    def check(content):
        path.write_bytes(content)
        for read in (verify, report, lambda p: report(p).table(), lambda p: read_certificates(p, allow_torn_tail=True)):
            only_typed(lambda read=read: read(path))

    if how == "bytes":
        fuzz(check, damage(whole), examples=examples)
    else:
        lines = st.tuples(changed(json.loads(first)) | st.just(first), changed(json.loads(second)) | st.just(second))
        fuzz(check, lines.map(lambda two: b"\n".join([*two, *rest, b""])), examples=examples)


@EXAMPLES
def test_reports_as_pages(certs, tmp_path, examples):
    """A plot and a page of whatever was accepted."""
    path, (first, *rest) = tmp_path / "c.jsonl", certs.read_bytes().splitlines()

    def check(line):
        path.write_bytes(b"\n".join([line, *rest, b""]))
        only_typed(lambda: report(path, html=tmp_path / "p.html"))

    fuzz(check, changed(json.loads(first)), examples=min(examples, 200) // 5)


@EXAMPLES
def test_tables_of_the_reference(tmp_path, examples):
    """Bytes, and cells."""
    path = tmp_path / "sigma_0.50.tsv"
    head = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    cells = st.lists(ODD.map(str) | st.integers(0, 9).map(str), min_size=3, max_size=7).map("\t".join)

    def check(content):
        path.write_bytes(content)
        only_typed(lambda: report(path).table())

    text = st.lists(cells, max_size=3).map(lambda rows: (head + "\n".join(rows)).encode("utf-8", "surrogatepass"))
    fuzz(check, text | damage((head + "0\t1\t1\t0.5\t1\t0:00:01\n").encode()), examples=examples)


@EXAMPLES
@pytest.mark.parametrize("how", ["bytes", "values"])
@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
def test_folders(file, how, digits_run, digits_export, tmp_path, examples):
    """What describes a run folder or an export folder."""
    source = digits_run if file == "config.json" else digits_export
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / file).unlink()
    whole = (source / file).read_bytes()

    def check(content):
        (folder / file).write_bytes(content)
        only_typed(lambda: open_artefact(folder))
        if file == "config.json":
            only_typed(lambda: load_model(folder, read_config(folder)))

    fuzz(check, damage(whole) if how == "bytes" else changed(json.loads(whole)), examples=examples)


@EXAMPLES
def test_weights(digits_run, tmp_path, examples):
    """The header of safetensors, mostly."""
    whole, config = (digits_run / "model.safetensors").read_bytes(), read_config(digits_run)

    def check(content):
        (tmp_path / "model.safetensors").write_bytes(content)
        only_typed(lambda: load_model(tmp_path, config))

    fuzz(check, damage(whole), examples=examples)


@EXAMPLES
@pytest.mark.parametrize("how", ["bytes", "metadata"])
def test_onnx_files(how, digits_export, tmp_path, examples):
    """Protobuf, and the JSON record in it."""
    import onnx

    path, whole = tmp_path / "m.onnx", (digits_export / "model.onnx").read_bytes()
    model = onnx.ModelProto.FromString(whole)
    (entry,) = (item for item in model.metadata_props if item.key == "smoothmix_deploy")
    record = json.loads(entry.value)

    def check(content):
        if how == "metadata":
            entry.value = content.decode()
            content = model.SerializeToString()
        path.write_bytes(content)
        only_typed(lambda: open_artefact(path))

    fuzz(check, damage(whole) if how == "bytes" else changed(record), examples=examples)


@EXAMPLES
def test_arrays_and_pictures(files, tmp_path, examples):
    """.npz, .png, .gif."""
    good = {"npz": (files / "good.npz").read_bytes(), "png": (files / "good.png").read_bytes()}

    def check(kind, data):
        path = tmp_path / f"x.{kind}"
        path.write_bytes(data.draw(damage(good[kind])))
        if kind == "npz":
            only_typed(lambda: load_data(f"npz:{path}"))
        else:
            only_typed(lambda: image_to_array(open_image(path), (1, 8, 8), path))

    fuzz(check, st.sampled_from(sorted(good)), st.data(), examples=2 * examples)


@EXAMPLES
def test_checkpoints_and_states(files, digits_run, tmp_path, examples):
    """What torch.save wrote: unpickled with weights_only."""
    whole = (digits_run / "state.pt").read_bytes()

    def check(content):
        (tmp_path / "c.pth").write_bytes(content)
        only_typed(
            lambda: smx.import_checkpoint(
                tmp_path / "c.pth", data="digits", sigma=0.5, arch="digits-cnn", out=tmp_path / "r"
            )
        )

    fuzz(check, damage(whole), examples=examples)


@EXAMPLES
def test_json(tmp_path, examples):
    """Any JSON and any bytes; what is accepted can be written again."""
    path = tmp_path / "x.json"

    def check(content):
        path.write_bytes(content)
        only_typed(lambda: read_json(path, "a file"))
        PartialVotes(certificates=tmp_path / "x").read(3, 10, 10)
        with contextlib.suppress(ValueError):
            json.dumps(parse_json(content.decode()), ensure_ascii=False).encode()

    fuzz(check, st.binary(max_size=100) | ODD.map(lambda v: json.dumps({"a": v}).encode()), examples=examples)


@EXAMPLES
def test_partial_votes(certs, tmp_path, examples):
    """The companion file may be anything."""
    from hashlib import sha256

    (tmp_path / "c.jsonl").write_bytes(certs.read_bytes())
    digest = sha256(certs.read_bytes().partition(b"\n")[0] + b"\n").hexdigest()
    votes = {"drawn": 3, "counts": [1, 2, 0]}
    good = {
        "manifest_sha256": digest,
        "images": [{"index": 0, "seconds": 0.1, "selection": votes, "estimation": votes}],
    }

    def check(content):
        (tmp_path / "c.jsonl.partial").write_bytes(content)
        PartialVotes(tmp_path / "c.jsonl").read(3, 10, 10)

    fuzz(check, changed(good), examples=examples)


@EXAMPLES
def test_options(examples):
    """Lists of numbers, and hyper-parameters of any value."""
    defaults = HyperParameters(epochs=1, lr=0.1)
    names = sorted(vars(defaults))

    def check(text, name, value):
        only_typed(lambda: numbers(text, "--radii"))
        only_typed(lambda: numbers(text, "--batch-sizes", int))
        if isinstance(value, type(getattr(defaults, name))):  # Typer has seen to the type
            only_typed(lambda: override(defaults, **{name: value}))

    fuzz(check, st.text(max_size=20), st.sampled_from(names), ODD, examples=4 * examples)
