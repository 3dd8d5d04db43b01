"""Hyper-parameters, and the named recipes that reproduce published rows.

Values: arXiv 2111.09277, appendix, and the scripts that its authors published. "ours" marks what they did not publish.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import BadInput


@dataclass(frozen=True)
class HyperParameters:
    """Everything that shapes a training run but its data, network and seed."""

    method: str = "smoothmix"
    sigma: float = 0.5
    epochs: int = 90
    batch_size: int = 256
    """Images loaded at a time; each is used in one of m optimiser steps on batch_size / m images."""
    lr: float = 0.01
    lr_step: int = 30
    """Epochs after which the learning rate is multiplied by lr_gamma."""
    lr_gamma: float = 0.1
    schedule: str = "step"
    """step, cosine or one-cycle."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    m: int = 4
    """Noise draws an image."""
    attack_steps: int = 4
    """T."""
    attack_step_size: float = 1.0
    """alpha of the attack (L2, [0, 1] pixel units)."""
    eta: float = 5.0
    """Weight of the mix loss."""
    one_step_adversary: bool = False
    max_norm: float | None = None
    warmup_epochs: int = 10
    precision: str = "fp32"
    """fp32, or bf16: the network's products in bfloat16 (see `acceleration`)."""
    compile: bool = False
    """torch.compile the network."""

    def __post_init__(self) -> None:
        for name, ok, wanted in (
            *(
                (name, math.isfinite(value), "a finite number")
                for name, value in vars(self).items()
                if isinstance(value, float)
            ),
            ("sigma", self.sigma > 0, "positive"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("m", self.m >= 1, "at least 1"),
            ("batch_size", self.batch_size >= self.m, f"at least m = {self.m}"),
            ("lr", self.lr > 0, "positive"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("lr_step", self.lr_step >= 1, "at least 1"),
            ("attack_steps", self.attack_steps >= 0, "at least 0"),
            ("attack_step_size", self.attack_step_size > 0, "positive"),
            ("eta", self.eta >= 0, "at least 0"),
            ("max_norm", self.max_norm is None or self.max_norm > 0, "positive"),
            ("warmup_epochs", self.warmup_epochs >= 1, "at least 1"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        ):
            if not ok:
                raise BadInput(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {wanted}")


SCHEDULES = ("step", "cosine", "one-cycle")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """A named run: data, network and hyper-parameters."""

    name: str
    data: str
    arch: str
    hyper_parameters: HyperParameters
    source: str


_PAPER = "arXiv 2111.09277"
_MNIST = HyperParameters(epochs=90, lr=0.01, lr_step=30, m=4)
_CIFAR = HyperParameters(epochs=150, lr=0.1, lr_step=50, m=2, eta=5.0)
_IMAGENET = HyperParameters(epochs=90, lr=0.1, lr_step=30, m=2, eta=1.0)
_DIGITS = HyperParameters(epochs=25, lr=0.1, schedule="one-cycle", m=4, attack_steps=2, eta=5.0)


def _all_recipes() -> list[Recipe]:
    found: list[Recipe] = []

    def add(
        data: str, arch: str, base: HyperParameters, suffix: str = "", source: str = _PAPER, **changes: Any
    ) -> None:
        hp = replace(base, **changes)
        name = f"{hp.method}-{data}-{hp.sigma:.2f}{suffix}"
        found.append(Recipe(name, data, arch, hp, source))

    for sigma, by_eta in ((0.25, {5.0: 2, 1.0: 3}), (0.50, {5.0: 4, 1.0: 4}), (1.00, {5.0: 8, 1.0: 8})):
        for osa in (False, True):
            for eta, steps in by_eta.items():
                suffix = ("-osa" if osa else "") + ("-eta1" if eta == 1 else "")
                add(
                    "mnist",
                    "lenet",
                    _MNIST,
                    suffix,
                    sigma=sigma,
                    eta=eta,
                    attack_steps=steps,
                    one_step_adversary=osa,
                )
        add("mnist", "lenet", _MNIST, method="gaussian", sigma=sigma, m=1)
    for sigma, step_size in ((0.25, 0.5), (0.50, 1.0), (1.00, 2.0)):
        for osa in (False, True):
            add("cifar10", "cifar-resnet110", _CIFAR, "-osa" if osa else "", sigma=sigma, attack_steps=4,
                attack_step_size=step_size, one_step_adversary=osa)  # fmt: skip
        add(
            "cifar10",
            "cifar-resnet110",
            _CIFAR,
            method="gaussian",
            sigma=sigma,
            m=1,
            source="arXiv 1902.02918",
        )
    for sigma, step_size in ((0.25, 0.5), (0.50, 1.0), (1.00, 2.0)):
        add("imagenet", "resnet50", _IMAGENET, sigma=sigma, attack_steps=1, attack_step_size=step_size,
            source="ours: the paper's authors published no ImageNet script")  # fmt: skip
        add("imagenet", "resnet50", _IMAGENET, method="gaussian", sigma=sigma, m=1, source="arXiv 1902.02918")
    for method in ("smoothmix", "gaussian"):
        add("digits", "digits-cnn", _DIGITS, method=method, sigma=0.25, source="ours: embedded data, seconds")
    return found


_RECIPES = {recipe.name: recipe for recipe in _all_recipes()}


def recipes() -> list[Recipe]:
    """All named recipes."""
    return list(_RECIPES.values())


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`; BadInput suggests near ones."""
    if name not in _RECIPES:
        from difflib import get_close_matches

        near = get_close_matches(name, _RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise BadInput(f"--recipe {name}: unknown; {hint}smx recipes lists them all")
    return _RECIPES[name]


def override(hp: HyperParameters, **changes: Any) -> HyperParameters:
    """`hp` with those of `changes` that are not None."""
    return replace(hp, **{name: value for name, value in changes.items() if value is not None})


def hyper_parameter_names() -> list[str]:
    """All that can be overridden."""
    return [item.name for item in fields(HyperParameters)]


def as_record(hp: HyperParameters) -> dict[str, Any]:
    """For config.json."""
    return asdict(hp)
