"""smx export"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json, progress_bar

NAME = "export"


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option("--out", help="Export folder to write.")],
    format: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    precision: Annotated[str, typer.Option("--precision", help="fp32.")] = "fp32",
    max_batch: Annotated[int | None, typer.Option("--max-batch", help="Largest batch that may be run.")] = None,
    max_disagreement: Annotated[
        float,
        typer.Option("--max-disagreement", help="Parity gate: limit on the share of votes that differ."),
    ] = 0.01,
    parity_samples: Annotated[int, typer.Option("--parity-samples", help="Votes that the gate compares.")] = 2048,
    data: o.Data = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    seed: o.Seed = None,
    json: o.Json = False,
) -> None:
    """Export the base network, through a parity gate that fails closed."""
    from dataclasses import asdict

    import smoothmix_deploy as smx

    with progress_bar() as progress:
        result = smx.export(
            run, out=out, format=format, precision=precision, max_batch=max_batch, max_disagreement=max_disagreement,
            parity_samples=parity_samples, data=data, data_root=data_root, download=download, seed=seed,
            progress=progress,
        )  # fmt: skip
    if result.parity.images.startswith("synthetic"):
        note(f"warning: the parity gate used images that are {result.parity.images}; name the real ones with --data")
    if result.parity.classes_seen < 2:
        note("warning: the model gave one answer for all parity images: the comparison says little")
    if json:
        print_json(
            {
                "path": str(result.path),
                "artefact": str(result.artefact),
                "sha256": result.sha256,
                "parity": asdict(result.parity),
            }
        )
        return
    print(f"{result.artefact}: SHA-256 {result.sha256}")
    print(f"parity gate passed: {result.parity.summary}, on {result.parity.images}")
    note(f"next: smx certify {result.path} --out certs.jsonl")
