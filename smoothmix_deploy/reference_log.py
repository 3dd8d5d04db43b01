"""Certification logs of the public reference implementations: tab-separated `idx label predict radius correct time`.

The one place that reads and writes them. The reference prints the radius to three significant digits, rounded to
nearest; ours are rounded down. Sigma is in the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import IO

from .certificates import Certificate
from .errors import BadInput
from .files import write_text
from .statistics.bounds import ABSTAIN

_LONGEST_LINE = 10_000
_LARGEST_RADIUS = 1e6
COLUMNS = ("idx", "label", "predict", "radius", "correct")


@dataclass(frozen=True)
class LogRow:
    """One image of a log."""

    index: int
    label: int
    prediction: int
    radius: float
    correct: bool


def is_reference_log(path: Path) -> bool:
    """Whether the file is empty or starts with the header of such a table."""
    with open(path, "rb") as file:
        line = file.readline(200)
    return not line or tuple(line.decode("utf-8", "replace").rstrip("\n").split("\t")[:5]) == COLUMNS


def read_reference_log(path: Path) -> list[LogRow]:
    """The rows of a log; BadInput names the first line that is not one."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = list(_lines(path, file))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: neither a certificate file nor a table of the reference implementation") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    header = lines[0].split("\t") if lines else []
    if tuple(header[:5]) != COLUMNS:
        raise BadInput(
            f"{path}, line 1: neither a certificate file nor a table of the reference implementation "
            f"(its columns would be {' '.join(COLUMNS)})"
        )
    return [_row(path, number, line) for number, line in enumerate(lines[1:], start=2) if line.strip()]


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """One by one, so that a file of one endless line does not fill the memory."""
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise BadInput(
                f"{path}, line {number}: longer than {_LONGEST_LINE} characters: not a table of the reference"
            )
        yield line.rstrip("\n")


def _row(path: Path, number: int, line: str) -> LogRow:
    cells = line.split("\t")
    try:
        index, label, prediction = (int(cell) for cell in cells[:3])
        radius, correct = float(cells[3]), int(cells[4])
    except (ValueError, IndexError):
        raise BadInput(
            f"{path}, line {number}: expected idx, label, predict, radius, correct; found {line[:80]!r}"
        ) from None
    if correct not in (0, 1) or not 0 <= radius <= _LARGEST_RADIUS or prediction < ABSTAIN:
        raise BadInput(f"{path}, line {number}: impossible values in {line[:80]!r}")
    return LogRow(index, label, prediction, radius, bool(correct))


def sigma_from_name(path: Path) -> float | None:
    """From `sigma_0.50` or `noise_0.50` in the file's name, or failing that in the nearest folder's."""
    for part in reversed(path.parts):
        found = re.findall(r"(?:sigma|noise)_(\d+(?:\.\d+)?)", part)
        if found:
            return float(found[-1])
    return None


def round_down(value: float, digits: int = 3) -> str:
    """`value` >= 0 to `digits` significant digits, never upwards: a printed radius is a proved one."""
    exact = Decimal(value)
    if exact == 0:
        return "0.0"
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return str(float(exact.quantize(step, rounding=ROUND_FLOOR)))


def write_tsv(path: Path, certificates: Iterable[Certificate]) -> None:
    """The reference's table (`idx label predict radius correct time`), with radii rounded down."""
    rows = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    for c in certificates:
        seconds = timedelta(seconds=c.seconds)
        rows.append(f"{c.index}\t{c.label}\t{c.prediction}\t{round_down(c.radius)}\t{int(c.correct)}\t{seconds}")
    write_text(path, "\n".join(rows) + "\n")
