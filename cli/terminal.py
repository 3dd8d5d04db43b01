"""What all commands print alike: JSON lines, notes and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smoothmix_deploy.progress import Progress


def show(text: str) -> None:
    """Lines of a result, on stdout: nothing that a file's author wrote steers the terminal."""
    from smoothmix_deploy.messages import printable

    print(printable(text, keep="\n"))


def note(text: str) -> None:
    """A remark, on stderr."""
    from smoothmix_deploy.messages import printable

    print(printable(text, keep="\n"), file=sys.stderr, flush=True)


def incomplete(file: Any, certificates: int, selected: int) -> str:
    """What is said of a certificate file that lacks images: its figures are not those of its selection."""
    return (
        f"note: {file}: {certificates} of {selected} selected images: the run is not finished (smx certify --resume), "
        "or not all its shards were merged"
    )


def print_json(value: Any) -> None:
    """One object as the last line of stdout; numbers that do not exist are null."""
    from smoothmix_deploy.files import to_json

    print(to_json(value), flush=True)


def numbers(text: str | None, option: str, kind: type = float) -> list[Any] | None:
    """A comma-separated list of numbers; BadInput names the option."""
    from smoothmix_deploy.errors import BadInput

    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadInput(f"{option} {text}: expected numbers separated by commas") from None


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr with rate and time left; where stderr is no terminal, a line every half minute."""
    if sys.stderr.isatty():
        with _terminal_bar() as update:
            yield update
    else:
        yield _occasional_lines()


@contextmanager
def _terminal_bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[details]}"), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: float, total: float, details: str) -> None:
            if what not in tasks:
                for old in tasks.values():
                    bar.update(old, visible=False)
                tasks[what] = bar.add_task(what, total=total, details="")
            bar.update(tasks[what], completed=done, total=total, details=details)
            if done >= total:
                bar.update(tasks.pop(what), visible=False)

        yield update


def _occasional_lines() -> Progress:
    import time

    last, begin = time.monotonic(), time.monotonic()
    doing, first = "", 0.0

    def update(what: str, done: float, total: float, details: str) -> None:
        nonlocal last, begin, doing, first
        now = time.monotonic()
        if what != doing:
            doing, begin, last, first = what, now, now, done  # a resumed run begins in the middle
        if now - last >= 30 and done > first:
            last = now
            left = (now - begin) / (done - first) * (total - done)
            note(f"{what}: {done / total:.0%}  {details}  about {left:,.0f} s left")

    return update
