"""The Typer application, exit codes and error lines.

Every command is a module of its own whose function collects options, calls the function of `smoothmix_deploy` of the
same name, and prints. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer

from . import (
    audit,
    bench,
    card,
    certificate,
    certify,
    commit,
    demo,
    doctor,
    export,
    import_,
    merge,
    predict,
    pull,
    push,
    recipes,
    report,
    sign,
    train,
    verify,
)


class _ReaderGone(Exception):
    """Standard output is a pipe that nobody reads any more."""


class _Interrupted(KeyboardInterrupt):
    """A class of our own: where KeyboardInterrupt itself passed code that a library ran, Python ends by SIGINT."""

    came = False


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Keep Ctrl-C and broken pipes from Typer, which has exit codes of its own for them."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from smoothmix_deploy.errors import Stopped

        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise Stopped("stopped") from None
        except BrokenPipeError:
            raise _ReaderGone from None
        except Stopped:
            raise
        except Exception:
            if _Interrupted.came:  # inside native code, which made an error of its own of it
                raise Stopped("stopped") from None
            raise

    return guarded


# Typer brings Click with it, under a name of its own in later versions.
UsageProblem: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    name="smx",
    help="Train image classifiers with SmoothMix, export them through a parity gate, certify the deployed engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    train, recipes, import_, export, commit, certify, merge, predict, report, verify, sign, certificate, audit, card, push,
    pull, bench, doctor, demo,
):  # fmt: skip
    app.command(name=module.NAME)(_guarded(module.command))


def _version(value: bool) -> None:
    if value:
        from smoothmix_deploy import __version__

        typer.echo(f"smx {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks (may stand anywhere)."),
    trust_code: bool = typer.Option(
        False, "--trust-code", help="Import the code that a run folder names as its network (may stand anywhere)."
    ),
) -> None:
    """Train image classifiers with SmoothMix, export them through a parity gate, certify the deployed engine."""
    if trust_code:
        os.environ["SMX_TRUST_CODE"] = "all"


def main(arguments: list[str] | None = None) -> None:
    """Run `smx` and exit: 0 done, 2 bad input, 3 a check failed, 4 not available, 5 stopped and resumable."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    trust = ["--trust-code"] if "--trust-code" in arguments else []
    arguments = trust + [argument for argument in arguments if argument not in ("--debug", "--trust-code")]
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack a class's name
    sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        from smoothmix_deploy.errors import SmxError
        from smoothmix_deploy.training.launch import launched

        code = app(arguments, prog_name="smx", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):  # first: SmxError may not be imported yet
        _complain("stopped")
        return 5
    except UsageProblem as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "smx"
            _complain(f"{error.format_message().rstrip('.')}; see {command} -h")
        elif launched().rank == 0:
            error.show()
        return error.exit_code
    except SmxError as error:
        if debug:
            raise
        _complain(str(error))
        return error.exit_code
    except _ReaderGone:  # e.g. `smx report ... | head`: no error
        with contextlib.suppress(OSError, ValueError):  # what is still buffered would fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        if debug:
            raise
        _complain("out of memory; a smaller --batch-size needs less", everywhere=True)
        return 5
    except OSError as error:
        if debug:
            raise
        name = error.filename2 or error.filename  # of a rename, the name that the user knows
        where = f"{name}: " if name else ""
        _complain(f"{where}{error.strerror or error}")
        return 2
    except Exception as error:
        if debug:
            raise
        _complain(f"unexpected {type(error).__name__}: {error} (a defect of smx; --debug shows where)", everywhere=True)
        return 1
    return 0


def _complain(message: str, everywhere: bool = False) -> None:
    """One line. Under torchrun an error that all processes meet alike is process 0's to tell."""
    from smoothmix_deploy.messages import printable
    from smoothmix_deploy.training.launch import launched

    if launched().rank == 0 or everywhere:
        print(f"smx: error: {printable(' '.join(message.split()))}", file=sys.stderr)


def _interrupt(signal_number: int, frame: FrameType | None) -> Any:
    """SIGTERM stops like Ctrl-C: what was computed is kept."""
    _Interrupted.came = True
    raise _Interrupted
