"""Hyper-parameters, and the named recipes that reproduce published rows.

Values: arXiv 2111.09277, appendix, and the scripts that its authors published. "ours" marks what they did not publish.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    """Images loaded at a time; see `steps_a_batch`."""
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
    """Weight of SmoothMix's mix loss; of Consistency's entropy."""
    one_step_adversary: bool = False
    max_norm: float | None = None
    """L2 ball of the attack, [0, 1] pixel units: SmoothAdv's epsilon, from which its step is 2 epsilon / T."""
    warmup_epochs: int = 10
    """Epochs until SmoothMix's mix loss or SmoothAdv's epsilon has grown to its full size; before MACER's robust term."""
    lbd: float = 2.0
    """Weight of what Stability, MACER and Consistency add to the cross-entropy."""
    beta: float = 16.0
    """MACER: factor of the logits in its robust term."""
    margin: float = 8.0
    """MACER: gamma of its paper, where the hinge of the robust term ends (radii in units of sigma / 2)."""
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
            ("warmup_epochs", self.warmup_epochs >= 0, "at least 0"),
            ("lbd", self.lbd >= 0, "at least 0"),
            ("beta", self.beta > 0, "positive"),
            ("margin", self.margin > 0, "positive"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        ):
            if not ok:
                raise BadInput(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {wanted}")
        if self.method == "smoothadv" and (self.max_norm is None or self.attack_steps < 1):
            raise BadInput("--method smoothadv: needs --max-norm (its epsilon) and --attack-steps of at least 1")
        if self.method == "macer" and self.warmup_epochs >= self.epochs:
            raise BadInput(
                f"--warmup-epochs {self.warmup_epochs}: must be below --epochs {self.epochs}: MACER's robust term "
                "starts after them; --warmup-epochs 0 starts it at once"
            )

    @property
    def steps_a_batch(self) -> int:
        """Optimiser steps on one loaded batch: m, on batch_size / m images each; MACER takes one on all of them."""
        return 1 if self.method == "macer" else self.m

    def warmup(self, epoch: int) -> float:
        """The warm-up of a step in `epoch`, in [0, 1]: a linear rise; for MACER off and then on."""
        if self.method == "macer":
            return float(epoch >= self.warmup_epochs)
        return min(1.0, (epoch + 1) / max(self.warmup_epochs, 1))


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
_SAME_GROUP = "logs in github.com/jh-jeong/smoothing-consistency"
_SIGMAS = (0.25, 0.50, 1.00)


def _baseline(method: str, sigma: float, deferred: int) -> dict[str, Any]:
    """A baseline's own hyper-parameters, as in the scripts of the paper's authors.

    MACER's robust term starts with the drop of the learning rate after `deferred` epochs: at a high rate it diverges.
    """
    own: dict[str, dict[str, Any]] = {
        "gaussian": {"m": 1},
        "stability": {"m": 1, "lbd": 2.0},
        "smoothadv": {"m": 4, "attack_steps": 10, "max_norm": 255 / 256},
        "macer": {
            "m": 16,
            "lbd": 6.0 if sigma == 1 else 16.0,
            "warmup_epochs": deferred,
            "lr_step": deferred,
            "schedule": "step",
        },
        "consistency": {"m": 2, "lbd": 10.0 if sigma == 0.25 else 5.0, "eta": 0.5},
    }
    return own[method] | {"method": method, "sigma": sigma}


_BASELINES = ("gaussian", "stability", "smoothadv", "macer", "consistency")


def general(method: str) -> HyperParameters:
    """Defaults for data that no recipe names."""
    hp = HyperParameters(epochs=30, lr=0.05, schedule="one-cycle", m=2, eta=1.0)
    if method in ("smoothmix", "gaussian"):
        return replace(hp, method=method)
    lr = 0.01 if method == "macer" else hp.lr
    return replace(hp, **_baseline(method, hp.sigma, deferred=10) | {"lr": lr})


def _recipe(data: str, arch: str, hp: HyperParameters, suffix: str = "", source: str = _PAPER) -> Recipe:
    return Recipe(f"{hp.method}-{data}-{hp.sigma:.2f}{suffix}", data, arch, hp, source)


def _mnist() -> Iterator[Recipe]:
    """The rows of the paper's MNIST table."""
    for sigma, by_eta in ((0.25, {5.0: 2, 1.0: 3}), (0.50, {5.0: 4, 1.0: 4}), (1.00, {5.0: 8, 1.0: 8})):
        for osa in (False, True):
            for eta, steps in by_eta.items():
                suffix = ("-osa" if osa else "") + ("-eta1" if eta == 1 else "")
                hp = replace(_MNIST, sigma=sigma, eta=eta, attack_steps=steps, one_step_adversary=osa)
                yield _recipe("mnist", "lenet", hp, suffix)
        for method in _BASELINES:
            yield _recipe("mnist", "lenet", replace(_MNIST, **_baseline(method, sigma, deferred=_MNIST.lr_step)))


def _cifar10() -> Iterator[Recipe]:
    """SmoothMix as in the paper; baselines as those published for the same network and schedule."""
    arch = "cifar-resnet110"
    for sigma, step_size in zip(_SIGMAS, (0.5, 1.0, 2.0), strict=True):
        hp = replace(_CIFAR, sigma=sigma, attack_steps=4, attack_step_size=step_size)
        yield _recipe("cifar10", arch, hp)
        yield _recipe("cifar10", arch, replace(hp, one_step_adversary=True), "-osa")
        for method, changes, source in _cifar10_baselines(sigma):
            baseline = replace(_CIFAR, **_baseline(method, sigma, deferred=_CIFAR.lr_step) | changes)
            yield _recipe("cifar10", arch, baseline, source=source)


def _cifar10_baselines(sigma: float) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(method, what differs from `_baseline`, source)."""
    yield "gaussian", {}, "arXiv 1902.02918"
    yield "stability", {}, _SAME_GROUP
    ball = {"m": 4, "max_norm": 255 / 256} if sigma == 0.25 else {"m": 2, "max_norm": 2.0}
    yield "smoothadv", ball, f"epsilon and m of {_SAME_GROUP}"
    macer = {
        "epochs": 440,
        "batch_size": 64,
        "lr": 0.01,
        "lr_step": 200,
        "weight_decay": 5e-4,
        "lbd": 4.0 if sigma == 0.5 else 12.0,
    }
    deferred = {"warmup_epochs": 200 if sigma == 1 else 0}
    yield "macer", macer | deferred, "arXiv 2001.02378"
    yield "consistency", {"lbd": 20.0 if sigma == 0.25 else 10.0}, f"arXiv 2006.04062, {_SAME_GROUP}"


def _imagenet() -> Iterator[Recipe]:
    for sigma, step_size in zip(_SIGMAS, (0.5, 1.0, 2.0), strict=True):
        hp = replace(_IMAGENET, sigma=sigma, attack_steps=1, attack_step_size=step_size)
        yield _recipe("imagenet", "resnet50", hp, source="ours: the paper's authors published no ImageNet script")
        gaussian = replace(_IMAGENET, **_baseline("gaussian", sigma, deferred=0))
        yield _recipe("imagenet", "resnet50", gaussian, source="arXiv 1902.02918")


def _short() -> Iterator[Recipe]:
    """Every method in 15 epochs, warm-ups scaled with them, on networks that a CPU or a small GPU trains."""
    for data, arch, lr in (("mnist", "lenet", 0.05), ("cifar10", "cifar-resnet20", 0.1)):
        long = {r.name: r.hyper_parameters for r in (_mnist() if data == "mnist" else _cifar10())}
        for sigma in _SIGMAS:
            for method in ("smoothmix", *_BASELINES):
                name = f"{method}-{data}-{sigma:.2f}"
                own: dict[str, Any] = {"lr": lr, "schedule": "one-cycle", "warmup_epochs": 2}
                if method == "macer":
                    own = {"lr": lr if data == "cifar10" else 0.01, "lr_step": 5, "warmup_epochs": 5}
                hp = replace(long[name], epochs=15, batch_size=256, **own)
                yield _recipe(data, arch, hp, "-short", f"ours: {name} in 15 epochs")


def _digits() -> Iterator[Recipe]:
    for method in ("smoothmix", *_BASELINES):
        own: dict[str, Any] = {"method": method, "sigma": 0.25}
        if method not in ("smoothmix", "gaussian"):
            own = _baseline(method, 0.25, deferred=12)
        if method == "macer":
            own |= {"batch_size": 32, "lr": 0.05, "lbd": 4.0}
        hp = replace(_DIGITS, **own)
        yield _recipe("digits", "digits-cnn", hp, source="ours: embedded data, seconds")


def _all_recipes() -> list[Recipe]:
    return [*_mnist(), *_cifar10(), *_imagenet(), *_short(), *_digits()]


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
