"""`smx merge`: the files of all shards of a selection, put together as the file that one run would have written.

Refuses what is not one run: other artefact, engine, data, key, rule; images twice; images missing. Draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..certificates import Certificate, CertificateFile, CertificateWriter, Manifest, read_certificates
from ..errors import BadInput, CheckFailed
from ..files import atomic_path, check_writable
from ..summary import Summary, summarise
from .shards import Shard, parse_shard, whole_selection

_OWN = ("created", "self_test", "data")
"""Of a manifest: what each shard has of its own. `data` is compared apart."""


@dataclass(frozen=True)
class MergeResult:
    """A merged file. `missing`: images of the selection without a line (with `partial` only)."""

    path: Path
    manifest: Manifest
    summary: Summary
    missing: list[int]


def merge(shards: Sequence[Path | str], *, out: Path | str, partial: bool = False) -> MergeResult:
    """Write the certificates of `shards` to `out` in data-set order, under one manifest.

    BadInput: files that are not shards of one run, or `out` exists. CheckFailed: a shard or an image is missing, unless
    `partial`: then the manifest's data names the missing ones.
    """
    out = Path(out)
    check_writable(out, "--out")
    if out.exists():
        raise BadInput(f"--out {out}: exists; choose another")
    if not shards:
        raise BadInput("smx merge: name the files of the shards")
    files = [read_certificates(path, allow_torn_tail=partial) for path in shards]
    numbers = [_shard(file) for file in files]
    whole = _whole(files[0])
    seen: dict[int, Path] = {}
    for file, number in zip(files, numbers, strict=True):
        if number.index in seen:
            raise BadInput(f"{file.path}: is shard {number}, and so is {seen[number.index]}")
        seen[number.index] = file.path
        _check_same_run(files[0], file)
    lines, missing = _in_order(files, whole)
    if missing and not partial:
        raise CheckFailed(_said_missing(missing, numbers, whole))
    # of the self-tests the least favourable: what is said of the whole file must be true of every shard
    tests = [file.manifest.self_test for file in files]
    manifest = replace(
        whole,
        self_test=min(tests, key=lambda test: [test.get(k) is True for k in ("bitwise_row_invariant", "bitwise_repeatable")]),
        created=min(file.manifest.created for file in files),
        data={**whole.data, **({"missing": missing} if missing else {})},
    )  # fmt: skip
    with atomic_path(out) as temporary:
        temporary.unlink()
        with CertificateWriter(temporary, manifest) as writer:
            for certificate in lines:
                writer.write(certificate)
    return MergeResult(out, manifest, summarise(lines), missing)


def _shard(file: CertificateFile) -> Shard:
    text = file.manifest.data.get("shard")
    shard = parse_shard(text) if isinstance(text, str) else None
    if shard is None:
        raise BadInput(f"{file.path}: is no shard (smx certify --shard i/k)")
    return shard


def _whole(file: CertificateFile) -> Manifest:
    """The manifest of the unsharded run (what is the shard's own aside)."""
    data = file.manifest.data
    try:
        selection = whole_selection(data)
    except ValueError as error:
        raise BadInput(f"{file.path}: impossible manifest ({error})") from None
    kept = {name: value for name, value in data.items() if name != "shard"}
    return replace(file.manifest, data={**kept, "start": selection.start, "skip": selection.step})


def _check_same_run(first: CertificateFile, file: CertificateFile) -> None:
    """BadInput names the first difference."""
    a, b = _flat(_whole(first)), _flat(_whole(file))
    a["shards"], b["shards"] = _shard(first).of, _shard(file).of
    for name in {**a, **b}:
        if a.get(name) != b.get(name):
            raise BadInput(
                f"{file.path}: has {name} {b.get(name)}, {first.path} has {a.get(name)}: not shards of one run"
            )


def _flat(manifest: Manifest) -> dict[str, Any]:
    record = asdict(manifest)
    flat = {name: value for name, value in record.items() if name not in _OWN}
    for part in ("artefact", "engine"):
        flat |= {
            f"{part} {name}": value
            for name, value in flat.pop(part).items()
            if (part, name) != ("artefact", "name") and name != "path"
        }
    return flat | {f"data {name}": value for name, value in record["data"].items() if name != "root"}


def _in_order(files: list[CertificateFile], whole: Manifest) -> tuple[list[Certificate], list[int]]:
    """Certificates in data-set order, and the images that have none. BadInput: an image of another shard."""
    selection = range(*(whole.data[name] for name in ("start", "stop", "skip")))
    found: dict[int, Certificate] = {}
    for file in files:
        own = range(*(file.manifest.data[name] for name in ("start", "stop", "skip")))
        for certificate in file.certificates:
            if certificate.index not in own:
                raise BadInput(f"{file.path}: has image {certificate.index}, which is not in its shard")
            found[certificate.index] = certificate
    return [found[i] for i in selection if i in found], [i for i in selection if i not in found]


def _said_missing(missing: list[int], numbers: list[Shard], whole: Manifest) -> str:
    absent = sorted(set(range(numbers[0].of)) - {number.index for number in numbers})
    shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    named = ", ".join(f"{index}/{numbers[0].of}" for index in absent)
    why = f"; not given: shard {named}" if absent else ""
    return (
        f"{len(missing)} images have no certificate: {shown}{why}; finish their shards (smx certify --resume), "
        "or merge what there is with --partial"
    )
