"""A self-contained HTML page of a report: plot, table, and what was certified with what."""

from __future__ import annotations

import base64
from pathlib import Path

from ..files import write_text
from .plot import png_bytes
from .table import Report

_MOST_ROWS = 1000


def write_html(report: Report, path: Path) -> None:
    """Write the page; it loads nothing from anywhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("smoothmix_deploy", "reporting"), autoescape=True, undefined=StrictUndefined
    )
    header, rows = report.cells()
    page = environment.get_template("page.html").render(
        header=header,
        rows=rows,
        plot=base64.b64encode(png_bytes(report)).decode(),
        files=report.files,
        most_rows=_MOST_ROWS,
    )
    write_text(path, page)
