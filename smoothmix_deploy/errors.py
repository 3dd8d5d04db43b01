"""The errors a user can cause or meet, each with the exit code of the command line.

Every message is one line that says what was wrong, with which value, and what to do about it.
Anything else that escapes is a defect of this package. Knows nothing about what it reports on.
"""


class SmxError(Exception):
    """Base of all errors meant for the user's eyes."""

    exit_code = 1


class BadInput(SmxError, ValueError):
    """A wrong argument, a missing or malformed file (exit code 2)."""

    exit_code = 2


class CheckFailed(SmxError):
    """A parity gate, self-test or verification said no (exit code 3)."""

    exit_code = 3


class Unavailable(SmxError):
    """The engine or device asked for is not on this machine (exit code 4)."""

    exit_code = 4


class Stopped(SmxError):
    """Stopped before the end; what was computed is kept and the command can be resumed (exit code 5)."""

    exit_code = 5
