"""smx certify"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json, progress_bar, show

NAME = "certify"


def command(
    artefact: Annotated[Path, typer.Argument(help="Run folder, export folder or .onnx file.")],
    engine: o.Engine = None,
    data: o.Data = None,
    data_root: o.DataRoot = None,
    split: o.Split = "test",
    download: o.Download = False,
    start: o.Start = None,
    stop: o.Stop = None,
    skip: o.Skip = None,
    sigma: o.Sigma = None,
    n: Annotated[int, typer.Option("--n", help="Samples an image; sequential rules: at most.")] = 100_000,
    n0: o.N0 = 100,
    alpha: o.Alpha = 0.001,
    alpha_family: o.AlphaFamily = None,
    rule: o.Rule = "fixed",
    radius: o.Radius = None,
    grid: o.Grid = None,
    tolerance: o.Tolerance = None,
    noise: o.Noise = "gaussian",
    batch_size: o.BatchSize = None,
    device: o.Device = "auto",
    threads: o.Threads = None,
    out: Annotated[Path, typer.Option("--out", help="Certificate file to write.")] = Path("certs.jsonl"),
    tsv: Annotated[Path | None, typer.Option("--tsv", help="Also write the reference's table.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out ends.")] = False,
    seed: o.Seed = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Noise key that smx commit has committed to.")
    ] = None,
    challenge: Annotated[
        str | None, typer.Option("--challenge", help="For --key-file: what the auditor answered to the commitment.")
    ] = None,
    reuse: Annotated[
        Path | None, typer.Option("--reuse", help="Certificates of the classifier of which ARTEFACT is a changed form.")
    ] = None,
    reuse_artefact: Annotated[
        Path | None, typer.Option("--reuse-artefact", help="For --reuse: the artefact that has them.")
    ] = None,
    reuse_n: Annotated[
        int, typer.Option("--reuse-n", help="For --reuse: samples an image on which the two are compared.")
    ] = 10_000,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes, each with an engine: one a GPU, or a socket.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Run the workers on a Ray cluster: auto, or its address.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="i/k: certify the i-th (from 0) of k parts, for smx merge.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Certify the deployed engine: L2 radii within which its smoothed answer cannot change."""
    from dataclasses import asdict

    import smoothmix_deploy as smx

    with progress_bar() as progress:
        result = smx.certify(
            artefact, engine=engine, data=data, data_root=data_root, split=split, download=download, start=start,
            stop=stop, skip=skip, sigma=sigma, n=n, n0=n0, alpha=alpha, alpha_family=alpha_family, rule=rule, radius=radius, grid=grid,
            tolerance=tolerance, noise=noise,
            batch_size=batch_size, device=device, threads=threads, out=out, tsv=tsv, resume=resume, seed=seed,
            key_file=key_file, challenge=challenge, reuse=reuse, reuse_artefact=reuse_artefact, reuse_n=reuse_n,
            workers=workers, ray=ray, shard=shard,
            progress=progress, note=note,
        )  # fmt: skip
    s = result.summary
    rate = result.samples / result.seconds if result.seconds else None
    if json:
        print_json(
            {
                "path": str(result.path),
                **asdict(s),
                "rule": result.manifest.rule,
                "samples": result.samples,
                "seconds": result.seconds,
                "samples_per_second": rate,
            }
        )
        return
    speed = f", {rate:,.0f} samples/s" if rate else ""
    show(
        f"{result.path}: {s.images} images by rule {result.rule}, ACR {s.acr:.3f}, accuracy {s.accuracy:.3f}, abstained {s.abstained:.3f}{speed}"
    )
    if shard is not None:
        note("next, when all shards are done: smx merge SHARDS --out FILE")
        return
    note(f"next: smx verify {result.path}; smx report {result.path} --plot curve.png")
