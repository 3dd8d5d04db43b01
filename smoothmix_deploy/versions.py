"""Versions of the packages that a result depends on, for manifests."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """Of a distribution, without importing it; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """Versions of this package, Python, NumPy, SciPy and of those of `packages` that are installed."""
    from . import __version__

    found = {"smoothmix-deploy": __version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", *packages):
        number = installed_version(package)
        if number is not None:
            found[package] = number
    return found
