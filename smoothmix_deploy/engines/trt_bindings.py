"""TensorRT's Python bindings, whichever is installed: `tensorrt` (10.16 or later) or `tensorrt_rtx`.

One API under two names. `tensorrt` is the full builder for one GPU at hand; `tensorrt_rtx` builds without a GPU, too, and
compiles its kernels where it runs. Shared by the engine that runs plans and the exporter that builds them.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import Unavailable
from ..messages import first_line

PACKAGES = ("tensorrt", "tensorrt_rtx")
EXTRA = "install smoothmix-deploy[trt-rtx] (tensorrt-rtx), or smoothmix-deploy[gpu] (tensorrt) on a machine with a GPU"


def load(package: str) -> Any:
    """The module `package`; Unavailable says why it cannot be imported."""
    try:
        module = importlib.import_module(package)
        module.Builder, module.Runtime  # noqa: B018 - a package without its libraries is an empty shell
    except (ImportError, AttributeError, OSError) as error:
        raise Unavailable(f"{package} cannot be imported ({first_line(error)}); {EXTRA}") from None
    return module


def installed() -> dict[str, str]:
    """Version of each package that can be imported; Unavailable with both reasons if none can."""
    found, reasons = {}, []
    for package in PACKAGES:
        try:
            found[package] = str(load(package).__version__)
        except Unavailable as error:
            reasons.append(str(error).removesuffix(f"; {EXTRA}"))
    if not found:
        raise Unavailable(f"TensorRT: {'; '.join(reasons)}; {EXTRA}")
    return found


def libraries_version(package: str) -> str:
    """Of the distribution: finer than the module's own in some releases."""
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return str(load(package).__version__)


def make_logger(trt: Any) -> Any:
    """A logger that keeps what TensorRT says from now on: `.lines` of (severity, text).

    Always the same object: TensorRT goes on using the first logger of the process, whichever object it is given later,
    so the first must never be freed.
    """
    logger = _only_logger(trt)
    logger.lines.clear()
    return logger


@cache
def _only_logger(trt: Any) -> Any:
    class Kept(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            """Called by TensorRT, from any thread."""
            self.lines.append((severity.name, text))

        def errors(self) -> str:
            """All errors in one line; empty if there were none."""
            kept = [first_line(text) for name, text in self.lines if name in ("ERROR", "INTERNAL_ERROR")]
            return "; ".join(dict.fromkeys(kept))

    return Kept()
