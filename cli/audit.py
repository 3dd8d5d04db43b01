"""smx audit"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, numbers, print_json, progress_bar, show

NAME = "audit"


def command(
    certs: Annotated[Path, typer.Argument(help="Certificate file.")],
    artefact: Annotated[Path, typer.Option("--artefact", help="What was certified; it judges the adversarial images.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="The run folder that it was exported from, for gradients.")
    ] = None,
    images: Annotated[int, typer.Option("--images", help="Attack this many randomly chosen certificates.")] = 10,
    restarts: Annotated[int, typer.Option("--restarts", help="Starts of an attack.")] = 8,
    steps: Annotated[int, typer.Option("--steps", help="Gradient steps from each start.")] = 40,
    samples: Annotated[int, typer.Option("--samples", help="Noise draws a step.")] = 32,
    outside: Annotated[
        str | None, typer.Option("--outside", help="Multiples of the radius to attack at; default: 1.25,1.5,2.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Votes that judge an adversarial image.")] = 10_000,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Probability of accusing a file whose claims are true.")
    ] = 0.001,
    data: o.Data = None,
    data_root: o.DataRoot = None,
    device: o.Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="What is found, a line an image.")] = Path("audit.jsonl"),
    seed: o.Seed = None,
    json: o.Json = False,
) -> None:
    """Attack the smoothed classifier inside certified radii, where no flip can be, and outside them."""
    import smoothmix_deploy as smx

    with progress_bar() as progress:
        result = smx.audit(
            certs, artefact=artefact, run=run, images=images, restarts=restarts, steps=steps, samples=samples,
            outside=numbers(outside, "--outside"), n=n, alpha=alpha, data=data, data_root=data_root, device=device,
            out=out, seed=seed, progress=progress, note=note,
        )  # fmt: skip
    total = len(result.images)
    if json:
        print_json(result.record())
    else:
        show(f"{result.certs}: {total} of {result.eligible} certificates attacked, {len(result.flips)} flips inside")
        for multiple in result.outside:
            show(f"within {multiple:g} radii: {result.flipped_within(multiple)} of {total} flipped")
        show(f"every image: {result.path}")
    if result.flips:
        more = f" (and {len(result.flips) - 1} more images, in {result.path})" if len(result.flips) > 1 else ""
        raise smx.CheckFailed(result.flips[0].accusation + more)
