"""Does every line of a certificate file follow from its votes? No engine, no data, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..certificates import Certificate, CertificateFile, Manifest
from ..errors import CheckFailed
from ..noise.source import GENERATORS, noise_slack
from ..rules import Rule, Verdict, make_rule
from .commitment import CommittedKey, check_disclosure
from .reuse_record import ReuseRecord, reuse_of, verdict_of_line
from .shards import whole_selection


@dataclass(frozen=True)
class Terms:
    """What a manifest lays down, checked."""

    rule: Rule
    reuse: ReuseRecord | None
    committed: CommittedKey | None

    @property
    def sample_numbers(self) -> tuple[int, ...]:
        """Those at which a line can have ended."""
        return (*self.rule.looks, *([self.reuse.replayed] if self.reuse else []))


def terms_of(content: CertificateFile) -> Terms:
    """CheckFailed, naming line 1, for a manifest that cannot be."""
    manifest, where = content.manifest, f"{content.path}, line 1"
    if GENERATORS.get(manifest.noise) != manifest.generator:
        raise CheckFailed(f"{where}: unknown noise {manifest.noise} ({manifest.generator})")
    try:
        _check_slack(manifest)
        reuse = reuse_of(manifest)
        committed = check_disclosure(manifest)
        rule = make_rule(
            manifest.rule,
            sigma=manifest.sigma,
            n=manifest.n,
            alpha=reuse.alpha_fresh if reuse else manifest.alpha,
            **manifest.rule_parameters,
        )
        images = len(whole_selection(manifest.data))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckFailed(f"{where}: impossible manifest ({error})") from None
    family = manifest.alpha_family
    if family is not None and manifest.alpha != family / images:
        raise CheckFailed(f"{where}: alpha {manifest.alpha} is not alpha_family {family} / {images} images")
    return Terms(rule, reuse, committed)


def check_lines(content: CertificateFile, terms: Terms) -> None:
    """CheckFailed names the first line that does not follow from its votes, or is not the next image's."""
    indices = content.manifest.images
    for line, certificate in enumerate(content.certificates, start=2):
        expected = indices[line - 2] if line - 2 < len(indices) else None
        reason = _wrong(certificate, content.manifest, terms, expected)
        if reason:
            raise CheckFailed(f"{content.path}, line {line} (image {certificate.index}): {reason}")


def _check_slack(manifest: Manifest) -> None:
    """ValueError unless p_lower was lowered by what the noise demands. Files of float noise need not say a shape."""
    said, needed = manifest.rule_parameters.get("slack", 0.0), 0.0
    if manifest.noise != "gaussian":
        channels, height, width = (int(size) for size in manifest.data["shape"])
        if min(channels, height, width) < 1:
            raise ValueError(f"shape {manifest.data['shape']}")
        needed = noise_slack(manifest.noise, manifest.sigma, (channels, height, width))
    if said != needed:
        raise ValueError(f"slack {said}, {manifest.noise} noise needs {needed}")


def _wrong(c: Certificate, manifest: Manifest, terms: Terms, expected_index: int | None) -> str | None:
    """What is wrong with a certificate; None if nothing is."""
    if c.index != expected_index:
        wanted = "no further image" if expected_index is None else f"image {expected_index}"
        return f"the manifest's selection has {wanted} here"
    most = terms.rule.largest_n
    if sum(c.selection_counts.values()) > manifest.n0 or sum(c.counts.values()) > c.n or not 0 < c.n <= most:
        return f"more votes than samples (n0 {manifest.n0}, n {c.n})"
    if any(not 0 <= k < manifest.num_classes for k in (*c.selection_counts, *c.counts)):
        return f"votes for a class outside 0 .. {manifest.num_classes - 1}"
    if not 0 <= c.label < manifest.num_classes:
        return f"label {c.label} is outside 0 .. {manifest.num_classes - 1}"
    if c.reuse is None:
        verdict = _verdict_of_rule(c, terms.rule)
    else:
        verdict = (
            verdict_of_line(c, manifest, terms.reuse) if terms.reuse else "reuse: the manifest has no earlier file"
        )
    if isinstance(verdict, str):
        return verdict
    if c.prediction != verdict.prediction:
        return f"prediction {c.prediction}, but the counts give {verdict.prediction}"
    for name, said, computed in (("radius", c.radius, verdict.radius), ("p_lower", c.p_lower, verdict.p_lower)):
        if not math.isclose(said, computed, rel_tol=1e-9, abs_tol=1e-12):  # another machine's special functions
            return f"{name} {said}, but the counts give {computed}"
    if c.correct != (c.prediction == c.label):
        return f"correct is {c.correct}, but the prediction is {c.prediction} and the label {c.label}"
    if not c.seconds >= 0:
        return f"seconds {c.seconds}"
    return None


def _verdict_of_rule(c: Certificate, rule: Rule) -> Verdict | str:
    """What the rule makes of a line's counts, or why they cannot be its."""
    if c.n not in rule.looks:
        return f"n is {c.n}, the rule decides at {_shown(rule.looks)}"
    classes = max((*c.selection_counts, *c.counts), default=0) + 1
    selection, counts = _dense(c.selection_counts, classes), _dense(c.counts, classes)
    verdict = rule.decide(selection, counts, c.n)
    if verdict is None:
        return f"with these counts the rule goes on after {c.n} samples"
    if not rule.can_reach(selection, counts, c.n):
        return f"with these counts the rule ends before {c.n} samples"
    return verdict


def _shown(looks: tuple[int, ...]) -> str:
    return ", ".join(map(str, looks if len(looks) <= 6 else (*looks[:3], "...", *looks[-2:])))


def _dense(counts: dict[int, int], classes: int) -> np.ndarray:
    dense = np.zeros(classes, np.int64)
    for k, votes in counts.items():
        dense[k] = votes
    return dense
