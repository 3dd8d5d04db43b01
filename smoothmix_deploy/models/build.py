"""From an architecture's name to a network whose first layer normalises.

So noise and radii live in [0, 1] pixel units, and normalisation is inside every export. Knows nothing about training
or files.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import BadInput, Unavailable
from ..messages import first_line

ARCHITECTURES = (
    "digits-cnn", "lenet",
    "cifar-resnet20", "cifar-resnet32", "cifar-resnet44", "cifar-resnet56", "cifar-resnet110",
    "resnet18", "resnet50", "timm:NAME", "pkg.module:callable",
)  # fmt: skip


TRUST_CODE = "SMX_TRUST_CODE"
"""Environment variable: the callables that run folders may name, separated by commas. What worker processes inherit."""
EVERYTHING = "all"
_consented: set[str] = set()


class Normalize(nn.Module):
    """(x - mean) / sd per channel."""

    mean: torch.Tensor
    sd: torch.Tensor

    def __init__(self, mean: Sequence[float], sd: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("sd", torch.tensor(sd).view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return (x - self.mean) / self.sd


class BaseClassifier(nn.Module):
    """F: images [B, C, H, W] in [0, 1], plus noise -> logits [B, K]. Normalisation first, then the network."""

    def __init__(self, net: nn.Module, mean_sd: tuple[Sequence[float], Sequence[float]] | None) -> None:
        super().__init__()
        self.normalize = Normalize(*mean_sd) if mean_sd else nn.Identity()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.net(self.normalize(x))


def canonical_arch(arch: str) -> str:
    """`cifar_resnet110` and `cifar-resnet110` are one name; `timm:` and callables are left as they are."""
    return arch if ":" in arch else arch.replace("_", "-").lower()


def build_model(
    arch: str,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    mean_sd: tuple[Sequence[float], Sequence[float]] | None,
    named_by: Path | None = None,
) -> BaseClassifier:
    """A freshly initialised base classifier, checked to map `input_shape` to `num_classes` scores.

    `named_by`: the file that chose `arch`; None: the user did, which is consent to run its code. Raises BadInput
    (unknown name, code that nobody consented to, or the network does not take such images) or Unavailable (timm missing).
    """
    if mean_sd and not len(mean_sd[0]) == len(mean_sd[1]) == input_shape[0]:
        raise BadInput(f"normalisation for {len(mean_sd[0])} channels, but the images have {input_shape[0]}")
    arch = canonical_arch(arch)
    _check_consent(arch, named_by)
    try:
        model = BaseClassifier(_network(arch, num_classes, input_shape[0]), mean_sd)
    except RuntimeError as error:  # more classes than memory
        raise BadInput(f"--arch {arch} cannot have {num_classes} classes ({first_line(error)})") from None
    training = model.training
    model.eval()
    shape = "x".join(map(str, input_shape))
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *input_shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = first_line(error)
        raise BadInput(f"--arch {arch} does not take images of {shape} ({reason})") from None
    model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise BadInput(f"--arch {arch} gives {found} for 2 images of {shape}, expected [2, {num_classes}] logits")
    return model


def is_code(arch: str) -> bool:
    """Whether the name makes us import a module of anybody's."""
    return ":" in arch and not arch.startswith("timm:")


def _check_consent(arch: str, named_by: Path | None) -> None:
    """BadInput for code that a file names and the user has not consented to. Consent lasts as long as the process."""
    if not is_code(arch):
        return
    if named_by is None:
        _consented.add(arch)
    trusted = os.environ.get(TRUST_CODE, "").split(",")
    if arch not in _consented and arch not in trusted and EVERYTHING not in trusted:
        raise BadInput(
            f"{named_by}: its network is code, {arch}, which would be imported and run; "
            f"if you trust it, add --trust-code (or set {TRUST_CODE}={arch})"
        )


def _network(arch: str, num_classes: int, channels: int) -> nn.Module:
    from .cifar_resnet import CifarResNet
    from .lenet import DigitsNet, LeNet

    simple: dict[str, Callable[[int], nn.Module]] = {"lenet": LeNet, "digits-cnn": DigitsNet}
    if arch in simple:
        return simple[arch](num_classes)
    if arch in ARCHITECTURES and arch.startswith("cifar-resnet"):
        return CifarResNet(int(arch.removeprefix("cifar-resnet")), num_classes)
    if arch in ("resnet18", "resnet50"):
        from torchvision import models

        return getattr(models, arch)(weights=None, num_classes=num_classes)
    if arch.startswith("timm:"):
        return _timm(arch, num_classes, channels)
    if ":" in arch:
        return _callable(arch, num_classes)
    raise BadInput(f"--arch {arch}: unknown; known: {', '.join(ARCHITECTURES)}")


def _timm(arch: str, num_classes: int, channels: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise Unavailable(f"--arch {arch}: timm is not installed; install smoothmix-deploy[timm]") from None
    name = arch.removeprefix("timm:")
    if ":" in name or "/" in name:  # hf-hub:, local-dir:, ...: timm would fetch or read what is there
        raise BadInput(f"--arch {arch}: not the name of one of timm's own networks")
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels)
    except (RuntimeError, ValueError, TypeError) as error:
        raise BadInput(f"--arch {arch}: timm cannot build it ({first_line(error)})") from None


def _callable(arch: str, num_classes: int) -> nn.Module:
    module_name, _, attribute = arch.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(
            f"--arch {arch}: cannot import it ({error}); expected pkg.module:callable on PYTHONPATH"
        ) from None
    try:
        net = make(num_classes=num_classes)
    except Exception as error:
        raise BadInput(
            f"--arch {arch}: calling it with num_classes={num_classes} failed ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(net, nn.Module):
        raise BadInput(f"--arch {arch}: returned {type(net).__name__}, expected a torch.nn.Module")
    return net
