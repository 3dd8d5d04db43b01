"""How long-running functions tell that they are alive: a callback with done, total and what to show beside the bar."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float, str], None]
"""(what is going on, done, total, details) -> None. Called a few times a second at most."""


def silent(what: str, done: float, total: float, details: str) -> None:
    """No progress: the default of library calls."""
