"""What a report is, and its text in every format. Knows no file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..certificates import Certificate, Manifest
from ..errors import BadInput
from ..messages import printable
from ..reference_log import LogRow
from ..rules import rule_label
from ..summary import Summary

FORMATS = ("table", "markdown", "latex", "csv", "json")


@dataclass(frozen=True)
class FileReport:
    """One file's rows and what they amount to. `manifest` is None for logs of the reference."""

    file: str
    sigma: float | None
    summary: Summary
    certified: list[float]
    """At `Report.radii`."""
    rows: Sequence[Certificate | LogRow]
    manifest: Manifest | None

    @property
    def rule(self) -> str:
        """With its radius, step or tolerance: figures of different rules mean different things."""
        return rule_label(self.manifest.rule, self.manifest.rule_parameters) if self.manifest else ""


@dataclass(frozen=True)
class Report:
    """Several files at the same radii."""

    radii: list[float]
    files: list[FileReport]

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "files": [
                {
                    "file": f.file,
                    "images": f.summary.images,
                    "selected": f.manifest.selected if f.manifest else None,
                    "acr": f.summary.acr,
                    "accuracy": f.summary.accuracy,
                    "abstained": f.summary.abstained,
                    "certified": dict(zip(map(radius_label, self.radii), f.certified, strict=True)),
                    "sigma": f.sigma,
                    "mean_samples": f.summary.mean_samples,
                    "rule": f.manifest.rule if f.manifest else None,
                    "rule_parameters": f.manifest.rule_parameters if f.manifest else None,
                }
                for f in self.files
            ]
        }

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows) as text."""
        header = ["file", "sigma", "images", "ACR", "accuracy", "abstained", "samples", "rule"]
        header += [f"r={radius_label(r)}" for r in self.radii]
        rows = []
        for f in self.files:
            s = f.summary
            row = [printable(f.file), "" if f.sigma is None else f"{f.sigma:g}", str(s.images), f"{s.acr:.3f}"]
            row += [
                f"{s.accuracy:.3f}",
                f"{s.abstained:.3f}",
                "" if s.mean_samples is None else f"{s.mean_samples:.0f}",
                f.rule,
            ]
            rows.append(row + [f"{share:.3f}" for share in f.certified])
        return header, rows

    def table(self, format: str = "table") -> str:
        """As text in one of `FORMATS` (json: see `record`)."""
        header, rows = self.cells()
        if format == "markdown":
            lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        if format == "latex":
            body = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (header, *rows)]
            columns = "l" + "r" * (len(header) - 1)
            return "\n".join(
                [
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    body[0],
                    r"\midrule",
                    *body[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        if format == "csv":
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows([header, *rows])
            return out.getvalue().rstrip("\n")
        if format == "table":
            widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
            return "\n".join(
                "  ".join(
                    cell.ljust(w) if i == 0 else cell.rjust(w)
                    for i, (cell, w) in enumerate(zip(line, widths, strict=True))
                )
                for line in (header, *rows)
            )
        raise BadInput(f"--format {format}: must be one of {', '.join(FORMATS)}")


def radius_label(radius: float) -> str:
    """0.25 -> "0.25", 1.0 -> "1"."""
    return f"{radius:g}"


def _latex(cell: str) -> str:
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join("\\" + c if c in "_%&#${}" else words.get(c, c) for c in cell)
