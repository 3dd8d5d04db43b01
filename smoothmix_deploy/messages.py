"""Other people's error messages, made fit for a line of ours."""

from __future__ import annotations


def first_line(error: BaseException | str, longest: int = 300) -> str:
    """The first line of a message, cut to `longest` characters; the error's type where it has no message."""
    lines = str(error).strip().splitlines()
    empty = error if isinstance(error, str) else type(error).__name__
    return (lines[0] if lines else empty)[:longest]
