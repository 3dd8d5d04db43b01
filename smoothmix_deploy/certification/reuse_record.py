"""What a file made with `--reuse` says of the earlier file, and whether its lines follow from it.

The manifest's `reuse` names the earlier file and how alpha is shared out; a line's `reuse` has the earlier line's votes
and the disagreements. A line without it was sampled afresh, at `alpha_fresh`. No engine, no torch: `smx verify`
computes the radii of reused lines from this alone.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..certificates import Certificate, CertificateFile, Manifest
from ..errors import CheckFailed
from ..records import fits, problem
from ..rules import Verdict
from ..statistics.bounds import ABSTAIN, certified_radius
from ..statistics.incremental import reused_lower


@dataclass(frozen=True)
class ReuseRecord:
    """The manifest's `reuse`. `alpha` + `alpha_disagreement` + `alpha_fresh` is the manifest's alpha."""

    file: str
    sha256: str
    """Of the earlier file as a whole, without a seal."""
    n: int
    n0: int
    alpha: float
    alpha_disagreement: float
    alpha_fresh: float
    replayed: int
    """Samples that both engines voted on: the first ones of the estimation stream."""
    artefact: dict[str, Any]
    engine: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


_TYPES = {name: str(item.type) for name, item in ReuseRecord.__dataclass_fields__.items()}


def reuse_of(manifest: Manifest) -> ReuseRecord | None:
    """The manifest's `reuse`, checked; ValueError for one that cannot be."""
    if manifest.reuse is None:
        return None
    wrong = problem(manifest.reuse, _TYPES)
    if wrong is not None:
        raise ValueError(f"reuse: {wrong}")
    found = ReuseRecord(**{name: manifest.reuse[name] for name in _TYPES})
    alphas = found.alpha, found.alpha_disagreement, found.alpha_fresh
    if min(alphas) < 1e-100 or sum(alphas) > manifest.alpha * (1 + 1e-12) or not manifest.alpha < 0.5:
        raise ValueError(f"reuse: errors {alphas} do not add up to an alpha of {manifest.alpha}")
    if not (1 <= found.replayed <= found.n and found.n0 >= 1 and found.replayed < manifest.n):
        raise ValueError(f"reuse: {found.replayed} replayed samples of {found.n}, n {manifest.n}")
    if manifest.rule != "fixed":
        raise ValueError(f"reuse with rule {manifest.rule}")
    return found


def top_class(counts: dict[int, int]) -> int:
    """The class with most votes, ties to the lowest index; -1 without votes."""
    return min(counts, key=lambda k: (-counts[k], k), default=ABSTAIN) if any(counts.values()) else ABSTAIN


def reused_verdict(
    record: ReuseRecord, selection: dict[int, int], counts: dict[int, int], disagreements: int | None,
    sigma: float, slack: float,
) -> Verdict:  # fmt: skip
    """What f's votes and the disagreements prove of f'. None: f was not asked again, as it abstained: abstain."""
    top = top_class(selection)
    if disagreements is None or top == ABSTAIN:
        return Verdict(ABSTAIN, 0.0, 0.0)
    p_lower = reused_lower(
        counts.get(top, 0), record.n, record.alpha, disagreements, record.replayed, record.alpha_disagreement, slack
    )
    radius = certified_radius(p_lower, sigma)
    return Verdict(top if radius > 0 else ABSTAIN, radius, p_lower)


def counts_of(value: Any, num_classes: int, most: int) -> dict[int, int] | None:
    """{class: votes} of a line's `reuse`; None if it is none."""
    if not isinstance(value, dict):
        return None
    # JSON has them as strings, a line that was just made as integers
    possible = all(re.fullmatch("0|[1-9][0-9]{0,8}", str(k)) and int(k) < num_classes for k in value)
    whole = all(fits(votes, "int") and votes >= 0 for votes in value.values())
    if not (possible and whole) or sum(value.values()) > most:
        return None
    return {int(k): votes for k, votes in value.items()}


def verdict_of_line(c: Certificate, manifest: Manifest, record: ReuseRecord) -> Verdict | str:
    """What a reused line proves, or what is wrong with it."""
    said = c.reuse or {}
    selection = counts_of(said.get("selection_counts"), manifest.num_classes, record.n0)
    counts = counts_of(said.get("counts"), manifest.num_classes, record.n)
    if selection is None or counts is None:
        return f"reuse: no possible votes of {record.n0} and {record.n} samples"
    if c.selection_counts or c.n != record.replayed:
        return f"reuse: expected no selection votes and n {record.replayed}, found {c.selection_counts} and {c.n}"
    k = said.get("disagreements", -1)
    others = c.n - c.counts.get(top_class(selection), 0)
    if k is not None and not (fits(k, "int") and 0 <= k <= others):
        return f"reuse: disagreements is {k!r}, but only {others} votes are for other classes than the earlier one"
    return reused_verdict(record, selection, counts, k, manifest.sigma, manifest.rule_parameters.get("slack", 0.0))


MUST_AGREE = ("sigma", "noise", "generator", "key", "num_classes")


def check_against(path: Path, manifest: Manifest, certificates: list[Certificate], old: CertificateFile) -> None:
    """CheckFailed unless the reused lines of `path` have the votes of the earlier file `old`."""
    record = reuse_of(manifest)
    if record is None:
        raise CheckFailed(f"{path}, line 1: was not made with --reuse, there is no earlier file to compare")
    old_path = old.path
    if old.sha256 != record.sha256:
        raise CheckFailed(
            f"{path}, line 1: made from a file with SHA-256 {record.sha256[:12]}..., {old_path} is another"
        )
    pairs = [(name, getattr(old.manifest, name), getattr(manifest, name)) for name in MUST_AGREE]
    pairs += [(name, getattr(old.manifest, name), getattr(record, name)) for name in ("n", "n0", "alpha")]
    pairs += [(name, old.manifest.data[name], manifest.data[name]) for name in ("name", "split", "digest")]
    for name, was, said in pairs:
        if was != said:
            raise CheckFailed(f"{path}, line 1: {name} {said}, but {old_path} has {was}")
    lines = {c.index: c for c in old.certificates}
    for line, c in enumerate(certificates, start=2):
        if c.reuse is None:
            continue
        was_line = lines.get(c.index)
        votes = [counts_of(c.reuse[name], manifest.num_classes, record.n) for name in ("selection_counts", "counts")]
        if was_line is None or votes != [was_line.selection_counts, was_line.counts]:
            raise CheckFailed(f"{path}, line {line} (image {c.index}): reuse: not the votes of {old_path}")
