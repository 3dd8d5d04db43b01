"""smx recipes"""

from . import options as o
from .terminal import print_json, show

NAME = "recipes"

_OWN = {
    "smoothmix": (("attack_steps", "T"), ("attack_step_size", "step"), ("eta", "eta")),
    "stability": (("lbd", "lbd"),),
    "smoothadv": (("attack_steps", "T"), ("max_norm", "epsilon"), ("warmup_epochs", "warm-up")),
    "macer": (("lbd", "lbd"), ("beta", "beta"), ("margin", "margin"), ("warmup_epochs", "robust term after epoch")),
    "consistency": (("lbd", "lbd"), ("eta", "eta")),
}
"""What `smx recipes` shows of each method: (hyper-parameter, label)."""


def command(json: o.Json = False) -> None:
    """List the named training recipes."""
    from dataclasses import asdict

    import smoothmix_deploy as smx

    found = smx.recipes()
    if json:
        print_json({"recipes": [asdict(recipe) for recipe in found]})
        return
    width = max(len(recipe.name) for recipe in found)
    for r in found:
        hp = r.hyper_parameters
        values = f"{hp.epochs} epochs, lr {hp.lr:g}, m {hp.m}"
        own = _OWN.get(hp.method, ())
        values += "".join(f", {label} {getattr(hp, name):g}" for name, label in own)
        if hp.method == "smoothmix" and hp.one_step_adversary:
            values += ", one-step adversary"
        show(f"{r.name:<{width}}  {r.arch:<15}  {values}  [{r.source}]")
