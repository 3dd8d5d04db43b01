"""smx doctor"""

from . import options as o
from .terminal import print_json

NAME = "doctor"


def command(json: o.Json = False) -> None:
    """What this machine has, and why what is missing is missing."""
    import smoothmix_deploy as smx

    found = smx.doctor()
    if json:
        print_json(found.record())
        return
    print(f"{found.system}; {found.processor}, {found.cores} cores")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    print("gpus: " + (", ".join(found.gpus) or f"none ({found.gpu_reason})"))
    for engine in found.engines:
        print(f"engine {engine.name}: {engine.version or 'missing'} - {engine.reason or engine.runs}")
    for name, version in found.extras.items():
        print(f"optional {name}: {version or 'not installed'}")
