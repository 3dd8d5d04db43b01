"""Named recipes: the rows of the paper, with the values of its authors' published commands."""

import itertools

import pytest

import smoothmix_deploy as smx
from smoothmix_deploy.training.methods import METHODS
from smoothmix_deploy.training.recipes import HyperParameters, _all_recipes, general

RECIPES = {recipe.name: recipe for recipe in smx.recipes()}
SIGMAS = (0.25, 0.50, 1.00)
ROWS = {  # of the authors' list of commands: method and suffix -> what differs between the rows, one value a sigma
    "gaussian": {"m": (1, 1, 1)},
    "stability": {"m": (1, 1, 1), "lbd": (2, 2, 2)},
    "smoothadv": {"m": (4, 4, 4), "attack_steps": (10, 10, 10), "max_norm": (255 / 256,) * 3, "warmup_epochs": (10,) * 3},
    "macer": {"m": (16,) * 3, "beta": (16,) * 3, "margin": (8,) * 3, "lbd": (16, 16, 6), "warmup_epochs": (30,) * 3},
    "consistency": {"m": (2, 2, 2), "lbd": (10, 5, 5), "eta": (0.5, 0.5, 0.5)},
    "smoothmix": {"m": (4,) * 3, "attack_steps": (2, 4, 8), "eta": (5,) * 3, "one_step_adversary": (False,) * 3},
    "smoothmix-eta1": {"m": (4,) * 3, "attack_steps": (3, 4, 8), "eta": (1,) * 3, "one_step_adversary": (False,) * 3},
    "smoothmix-osa": {"m": (4,) * 3, "attack_steps": (2, 4, 8), "eta": (5,) * 3, "one_step_adversary": (True,) * 3},
    "smoothmix-osa-eta1": {"m": (4,) * 3, "attack_steps": (3, 4, 8), "eta": (1,) * 3, "one_step_adversary": (True,) * 3},
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_mnist_rows_of_the_paper(row):
    """Every row, every sigma: what the authors' commands say; the optimiser is the same for all."""
    method, _, suffix = row.partition("-")
    for i, sigma in enumerate(SIGMAS):
        recipe = RECIPES[f"{method}-mnist-{sigma:.2f}{'-' if suffix else ''}{suffix}"]
        hp = recipe.hyper_parameters
        wanted = {name: values[i] for name, values in ROWS[row].items()} | {
            "method": method, "sigma": sigma, "epochs": 90, "batch_size": 256, "lr": 0.01, "lr_step": 30,
            "lr_gamma": 0.1, "schedule": "step", "momentum": 0.9, "weight_decay": 1e-4, "attack_step_size": 1.0,
        }  # fmt: skip
        assert {name: getattr(hp, name) for name in wanted} == wanted
        assert (recipe.data, recipe.arch, recipe.source) == ("mnist", "lenet", "arXiv 2111.09277")


def test_cifar10_rows_of_the_paper():
    """SmoothMix, with and without the one-step adversary."""
    for (sigma, step_size), osa in itertools.product(zip(SIGMAS, (0.5, 1.0, 2.0), strict=True), (False, True)):
        recipe = RECIPES[f"smoothmix-cifar10-{sigma:.2f}{'-osa' if osa else ''}"]
        assert recipe.arch == "cifar-resnet110"
        assert recipe.hyper_parameters == HyperParameters(
            sigma=sigma, epochs=150, lr=0.1, lr_step=50, m=2, attack_steps=4, attack_step_size=step_size, eta=5.0,
            one_step_adversary=osa,
        )  # fmt: skip


def test_every_method_has_every_kind():
    """Long and short, on both data sets, at each sigma; the long ones come first, so they are what --method finds."""
    names = list(RECIPES)
    assert len(_all_recipes()) == len(names)
    for method, data, sigma in itertools.product(METHODS, ("mnist", "cifar10"), SIGMAS):
        name = f"{method}-{data}-{sigma:.2f}"
        short = RECIPES[f"{name}-short"]
        assert short.hyper_parameters.epochs == 15
        assert short.source.startswith("ours")
        assert names.index(name) < names.index(f"{name}-short")
    for method in METHODS:
        assert RECIPES[f"{method}-digits-0.25"].hyper_parameters.method == general(method).method == method


def test_macer_regularises_from_the_first_drop_of_the_rate():
    """In all its recipes the robust term is off until then, or on from the start."""
    for recipe in RECIPES.values():
        hp = recipe.hyper_parameters
        if hp.method == "macer":
            assert hp.schedule == "step"
            assert hp.warmup_epochs in (0, hp.lr_step)


def test_warm_up():
    """Linear for SmoothMix and SmoothAdv, off and then on for MACER; none with 0."""
    linear = HyperParameters(warmup_epochs=4, epochs=9)
    assert [linear.warmup(e) for e in (0, 1, 3, 8)] == [0.25, 0.5, 1.0, 1.0]
    macer = HyperParameters(method="macer", warmup_epochs=4, epochs=9)
    assert [macer.warmup(e) for e in (0, 3, 4, 8)] == [0.0, 0.0, 1.0, 1.0]
    assert HyperParameters(warmup_epochs=0).warmup(0) == 1.0
    assert HyperParameters(method="macer", warmup_epochs=0).warmup(0) == 1.0
