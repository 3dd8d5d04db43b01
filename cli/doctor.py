"""smx doctor"""

from . import options as o
from .terminal import print_json, show

NAME = "doctor"


def command(json: o.Json = False) -> None:
    """What this machine has, and why what is missing is missing."""
    import smoothmix_deploy as smx

    found = smx.doctor()
    if json:
        print_json(found.record())
        return
    show(f"{found.system}; {found.processor}, {found.cores} cores")
    show("versions: " + ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    show("gpus: " + (", ".join(found.gpus) or f"none ({found.gpu_reason})"))
    for engine in found.engines:
        show(f"engine {engine.name}: {engine.version or 'missing'} - {engine.reason or engine.runs}")
    for name, version in found.extras.items():
        show(f"optional {name}: {version or 'not installed'}")
