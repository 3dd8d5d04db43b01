"""What `smx certify --resume` may go on with: the same run, from where its file ends, and nothing else."""

from __future__ import annotations

from pathlib import Path

from ..certificates import Certificate, CertificateFile, Manifest, read_certificates, refuse_if_locked
from ..errors import BadInput


def file_to_resume(out: Path, resume: bool) -> CertificateFile | None:
    """The file to go on with, or None for a new one."""
    if not out.exists():
        return None
    if not out.is_file():
        raise BadInput(f"--out {out}: is not a regular file")
    if not resume:
        raise BadInput(f"--out {out}: exists; add --resume to go on with it, or choose another")
    if _torn_in_first_line(out):  # killed before the manifest was whole: nothing was computed
        refuse_if_locked(out)
        out.unlink()
        return None
    known = read_certificates(out, allow_torn_tail=True)
    if known.seal is not None:
        raise BadInput(f"--resume: {out} is signed, nothing can be added to it; choose another --out")
    return known


def _torn_in_first_line(out: Path) -> bool:
    """Whether the file is empty or the beginning of a manifest: ours, and nothing is lost by starting again."""
    start = b'{"kind": "manifest"'
    with open(out, "rb") as file:
        line = file.readline()
    return not line.endswith(b"\n") and line[: len(start)] == start[: len(line)]


_SAME = (
    "sigma", "alpha", "alpha_family", "n0", "n", "noise", "generator", "rule", "rule_parameters", "num_classes",
)  # fmt: skip


def check_same_run(out: Path, old: Manifest, new: Manifest) -> None:
    """BadInput names the first thing in which the run asked for differs from the one in the file."""
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in _SAME]
    pairs += [("artefact " + k, old.artefact.get(k), new.artefact[k]) for k in ("sha256",)]
    pairs += [("engine " + k, old.engine.get(k), value) for k, value in new.engine.items()]
    pairs += [
        ("data " + k, old.data.get(k), new.data.get(k)) for k in ("digest", "split", "shard", "start", "stop", "skip")
    ]
    pairs += [("reuse " + k, (old.reuse or {}).get(k), (new.reuse or {}).get(k)) for k in ("sha256", "replayed")]
    if new.commitment is not None:
        pairs += [("--" + k, (old.commitment or {}).get(k), new.commitment[k]) for k in ("commitment", "challenge")]
    if new.seed is not None:
        pairs.append(("seed", old.seed, new.seed))
    for name, was, now in pairs:
        if was != now:
            raise BadInput(
                f"--resume: {out} was begun with {name} {was}, now it is {now}; use the same, or another --out"
            )


def check_order(out: Path, done: list[Certificate], indices: range) -> None:
    """BadInput unless the lines are those of the first images selected."""
    if [c.index for c in done] != list(indices[: len(done)]):
        raise BadInput(f"--resume: the lines of {out} are not the first images of this selection; use another --out")
