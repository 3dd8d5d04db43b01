"""Other people's texts and error messages, made fit for a line of ours."""

from __future__ import annotations


def first_line(error: BaseException | str, longest: int = 300) -> str:
    """The first line of a message, cut to `longest` characters; the error's type where it has no message."""
    lines = str(error).strip().splitlines()
    empty = error if isinstance(error, str) else type(error).__name__
    return (lines[0] if lines else empty)[:longest]


def printable(text: str, *, keep: str = "") -> str:
    """`text` with everything spelled out that would steer a terminal or break a line, except the characters in `keep`.

    Names in files of others may hold escape sequences, line ends, marks that turn the direction of writing round, or
    code points that no encoding takes.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
