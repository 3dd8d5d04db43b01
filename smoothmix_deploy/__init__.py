"""smoothmix_deploy: train with SmoothMix, export through a parity gate, certify the deployed engine itself.

Every `smx` command is one function here, with the same name and the same options:

    import smoothmix_deploy as smx
    run = smx.train(data="digits", arch="digits-cnn", sigma=0.25, out="runs/digits")
    artefact = smx.export(run.path, out="artefacts/digits")
    smx.certify(artefact.path, engine="ort", data="digits", n=10_000, out="certs.jsonl")
    print(smx.report("certs.jsonl").table())

Nothing heavy is imported until a function is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# OpenMP threads that spin while they wait make small batches up to 100 times slower on virtual machines.
# Read once, when torch is imported; a value that the user set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    __version__ = version("smoothmix-deploy")
except PackageNotFoundError:  # running from a checkout that is not installed
    __version__ = "0+unknown"

_PUBLIC = {
    "train": "training.run",
    "recipes": "training.recipes",
    "import_checkpoint": "models.published",
    "export": "exporting.run",
    "commit": "certification.commitment",
    "certify": "certification.run",
    "merge": "certification.merging",
    "predict": "certification.predict",
    "Predictor": "certification.predictor",
    "report": "reporting.report",
    "card": "reporting.card",
    "push": "models.hub",
    "pull": "models.hub",
    "verify": "certification.verify",
    "sign": "certification.sign",
    "certificate": "reporting.certificate",
    "audit": "auditing.run",
    "bench": "benchmarking.run",
    "doctor": "doctoring",
    "demo": "demonstration",
    "SmxError": "errors",
    "BadInput": "errors",
    "CheckFailed": "errors",
    "Unavailable": "errors",
    "Stopped": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
