"""Training methods by name. Adding one: a module with a step function (see `steps`) and a line here."""

from __future__ import annotations

from ..errors import BadInput
from .consistency import consistency_step
from .gaussian import gaussian_step
from .macer import macer_step
from .smoothadv import smoothadv_step
from .smoothmix import smoothmix_step
from .stability import stability_step
from .steps import Step

METHODS: dict[str, Step] = {
    "smoothmix": smoothmix_step,
    "gaussian": gaussian_step,
    "stability": stability_step,
    "smoothadv": smoothadv_step,
    "macer": macer_step,
    "consistency": consistency_step,
}


def step_function(method: str) -> Step:
    """The step of the method called so; BadInput for unknown names."""
    if method not in METHODS:
        raise BadInput(f"--method {method}: unknown; known methods: {', '.join(METHODS)}")
    return METHODS[method]
