"""Training methods by name. Adding one: a module with a step function (see `steps`) and a line here."""

from __future__ import annotations

from ..errors import BadInput
from .gaussian import gaussian_step
from .smoothmix import smoothmix_step
from .steps import Step

METHODS: dict[str, Step] = {"smoothmix": smoothmix_step, "gaussian": gaussian_step}


def step_function(method: str) -> Step:
    """The step of the method called so; BadInput for unknown names."""
    if method not in METHODS:
        raise BadInput(f"--method {method}: unknown; known methods: {', '.join(METHODS)}")
    return METHODS[method]
