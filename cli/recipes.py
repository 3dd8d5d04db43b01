"""smx recipes"""

from . import options as o
from .terminal import print_json, show

NAME = "recipes"


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
        if hp.method == "smoothmix":
            osa = ", one-step adversary" if hp.one_step_adversary else ""
            values += f", T {hp.attack_steps}, step {hp.attack_step_size:g}, eta {hp.eta:g}{osa}"
        show(f"{r.name:<{width}}  {r.arch:<15}  {values}  [{r.source}]")
