"""smx predict"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json, progress_bar, show

NAME = "predict"


def command(
    artefact: Annotated[Path, typer.Argument(help="Run folder, export folder or .onnx file.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Image files of the model's size.")] = None,
    engine: o.Engine = None,
    data: o.Data = None,
    data_root: o.DataRoot = None,
    split: o.Split = "test",
    download: o.Download = False,
    start: o.Start = None,
    stop: o.Stop = None,
    skip: o.Skip = None,
    sigma: o.Sigma = None,
    n: Annotated[int, typer.Option("--n", help="Samples an image; sequential rules: at most.")] = 10_000,
    n0: o.N0 = 100,
    alpha: o.Alpha = 0.001,
    rule: o.Rule = "fixed",
    radius: o.Radius = None,
    grid: o.Grid = None,
    tolerance: o.Tolerance = None,
    noise: o.Noise = "gaussian",
    batch_size: o.BatchSize = None,
    device: o.Device = "auto",
    threads: o.Threads = None,
    seed: o.Seed = None,
    json: o.Json = False,
) -> None:
    """The smoothed prediction for a few images, and the radius within which it is proved."""
    from dataclasses import asdict

    import smoothmix_deploy as smx
    from smoothmix_deploy.messages import printable

    with progress_bar() as progress:
        found = smx.predict(
            artefact, images or [], data=data, data_root=data_root, split=split, download=download, start=start,
            stop=stop, skip=skip, engine=engine, sigma=sigma, n=n, n0=n0, alpha=alpha, rule=rule, radius=radius, grid=grid,
            tolerance=tolerance, noise=noise,
            batch_size=batch_size, device=device, threads=threads, seed=seed, progress=progress, note=note,
        )  # fmt: skip
    if json:
        print_json({"predictions": [asdict(p) for p in found]})
        return
    names = [printable(p.name) for p in found]
    width = max([5, *map(len, names)])
    show(
        f"{'image':<{width}}  {'prediction':<16}  {'radius':>7}  {'p >=':>7}"
        + ("  label" if found and found[0].label is not None else "")
    )
    for name, p in zip(names, found, strict=True):
        label = "" if p.label is None else f"  {p.label}"
        show(
            f"{name:<{width}}  {printable(p.class_name or 'abstains'):<16}  {p.radius:>7.3f}  {p.p_lower:>7.4f}{label}"
        )
