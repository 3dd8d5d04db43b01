"""`smx report`: certified accuracy at radii, ACR, accuracy, abstentions; several files side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..certificates import Certificate, Manifest, is_certificate_file, read_certificates
from ..errors import BadInput
from ..files import check_writable
from ..reference_log import LogRow, read_reference_log, sigma_from_name
from ..summary import certified_accuracy, summarise, usual_radii
from .html import write_html
from .plot import write_plot
from .table import FileReport, Report


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
    if html is not None:
        check_writable(Path(html), "--html")
    loaded = [_load(Path(path), sigma) for path in files]
    highest = max((row.radius for *_, rows, _ in loaded for row in rows if row.correct), default=0.0)
    chosen = sorted(set(radii)) if radii is not None else usual_radii(highest)
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
        write_plot(result, Path(plot))
    if html is not None:
        write_html(result, Path(html))
    return result


_Loaded = tuple[Path, float | None, Sequence[Certificate | LogRow], Manifest | None]


def _load(path: Path, sigma: float | None) -> _Loaded:
    if is_certificate_file(path):
        content = read_certificates(path, allow_torn_tail=True)
        return path, content.manifest.sigma, content.certificates, content.manifest
    return path, sigma if sigma is not None else sigma_from_name(path), read_reference_log(path), None
