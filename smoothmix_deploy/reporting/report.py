"""`smx report`: certified accuracy at radii, ACR, accuracy, abstentions; several files side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..certificates import Certificate, Manifest, is_certificate_file, read_certificates
from ..errors import BadInput
from ..summary import Summary, certified_accuracy, summarise
from .reference_log import LogRow, read_reference_log, sigma_from_name

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
                    "acr": f.summary.acr,
                    "accuracy": f.summary.accuracy,
                    "abstained": f.summary.abstained,
                    "certified": dict(zip(map(radius_label, self.radii), f.certified, strict=True)),
                    "sigma": f.sigma,
                    "mean_samples": f.summary.mean_samples,
                    "rule": f.manifest.rule if f.manifest else None,
                }
                for f in self.files
            ]
        }

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows) as text."""
        header = ["file", "sigma", "images", "ACR", "accuracy", "abstained", "samples"]
        header += [f"r={radius_label(r)}" for r in self.radii]
        rows = []
        for f in self.files:
            s = f.summary
            row = [f.file, "" if f.sigma is None else f"{f.sigma:g}", str(s.images), f"{s.acr:.3f}"]
            row += [
                f"{s.accuracy:.3f}",
                f"{s.abstained:.3f}",
                "" if s.mean_samples is None else f"{s.mean_samples:.0f}",
            ]
            rows.append(row + [f"{share:.3f}" for share in f.certified])
        return header, rows

    def table(self, format: str = "table") -> str:
        """As text in one of `FORMATS` (json: see `record`)."""
        header, rows = self.cells()
        if format == "markdown":
            lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
            return "\n".join("| " + " | ".join(line) + " |" for line in lines)
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
    return "".join("\\" + c if c in "_%&#$" else c for c in cell)


def report(
    *files: Path | str,
    radii: Sequence[float] | None = None,
    sigma: float | None = None,
    plot: Path | str | None = None,
    html: Path | str | None = None,
) -> Report:
    """Read certificate files and the reference's logs; optionally write a plot (by suffix) and an HTML page.

    `radii` None: 0, 0.25, 0.5, ... as far as anything is certified. `sigma` is for logs whose name does not tell.
    """
    if not files:
        raise BadInput("name at least one certificate file")
    loaded = [_load(Path(path), sigma) for path in files]
    highest = max((row.radius for *_, rows, _ in loaded for row in rows if row.correct), default=0.0)
    chosen = sorted(set(radii)) if radii is not None else _usual_radii(highest)
    if any(not r >= 0 for r in chosen):
        raise BadInput("--radii: must be numbers >= 0, e.g. 0,0.25,0.5")
    result = Report(
        list(chosen),
        [
            FileReport(str(path), noise, summarise(rows), certified_accuracy(rows, chosen), rows, manifest)
            for path, noise, rows, manifest in loaded
        ],
    )
    if plot is not None:
        from .plot import write_plot

        write_plot(result, Path(plot))
    if html is not None:
        from .html import write_html

        write_html(result, Path(html))
    return result


def _usual_radii(highest: float) -> list[float]:
    step = 0.25
    while highest / step > 12:
        step *= 2
    return [i * step for i in range(int(highest / step) + 1)]


_Loaded = tuple[Path, float | None, Sequence[Certificate | LogRow], Manifest | None]


def _load(path: Path, sigma: float | None) -> _Loaded:
    if is_certificate_file(path):
        content = read_certificates(path, allow_torn_tail=True)
        return path, content.manifest.sigma, content.certificates, content.manifest
    return path, sigma if sigma is not None else sigma_from_name(path), read_reference_log(path), None
