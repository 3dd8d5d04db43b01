"""Ctrl-C and SIGTERM as a request that is honoured where a run can go on from."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class StopRequests:
    """Turns the first Ctrl-C or SIGTERM into a request; a second one, `echo` seconds later or more, acts at once.

    Under torchrun a Ctrl-C comes twice: from the terminal, and from torchrun.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.requested = False
        self._echo, self._first = echo, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
        elif now - self._first >= self._echo:
            raise KeyboardInterrupt
