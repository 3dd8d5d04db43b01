"""smx export"""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, numbers, print_json, progress_bar, show

NAME = "export"


def command(
    run: Annotated[Path, typer.Argument(help="Run folder, or an .onnx file of anybody's.")],
    out: Annotated[Path, typer.Option("--out", help="Export folder to write.")],
    format: Annotated[str, typer.Option("--format", help="onnx, trt, openvino or triton.")] = "onnx",
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 (default), fp16, bf16, int8; with --format trt also fp8.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option("--max-batch", help="Largest batch that may be run.")] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Engine of the parity gate; default: the best here that can.")
    ] = None,
    device: o.Device = "auto",
    sigma: o.Sigma = None,
    max_disagreement: Annotated[
        float,
        typer.Option("--max-disagreement", help="Parity gate: limit on the share of votes that differ."),
    ] = 0.01,
    max_radius_lost: Annotated[
        float, typer.Option("--max-radius-lost", help="Parity gate: limit on the share of mean certified radius lost.")
    ] = 0.05,
    parity_samples: Annotated[int, typer.Option("--parity-samples", help="Votes that the gate compares.")] = 2048,
    calibration_samples: Annotated[
        int, typer.Option("--calibration-samples", help="Noisy images that set the ranges of int8 and fp8.")
    ] = 512,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let a TensorRT plan use TF32 in float32 layers.")] = False,
    layout: Annotated[str | None, typer.Option("--layout", help="Of an ONNX file's input: nchw or nhwc.")] = None,
    input_range: Annotated[
        float | None, typer.Option("--input-range", help="What white is to an ONNX file: 1 or 255.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", help="Per channel, to subtract for an ONNX file, in its own range.")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="Per channel, to divide by for an ONNX file.")] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", help="C,H,W where an ONNX file leaves them open.")
    ] = None,
    allow_external_data: Annotated[
        bool, typer.Option("--allow-external-data", help="Read an ONNX file's weights from other files of its folder.")
    ] = False,
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
            run, out=out, format=format, precision=precision, max_batch=max_batch, engine=engine, device=device,
            sigma=sigma, max_disagreement=max_disagreement, max_radius_lost=max_radius_lost,
            parity_samples=parity_samples, calibration_samples=calibration_samples, tf32=tf32, layout=layout,
            input_range=input_range, mean=numbers(mean, "--mean"), std=numbers(std, "--std"),
            input_shape=numbers(input_shape, "--input-shape", int),
            allow_external_data=allow_external_data, data=data, data_root=data_root, download=download,
            seed=seed, progress=progress,
        )  # fmt: skip
    for text in result.assumptions:
        note(f"assumed: {text}")
    if result.parity is not None and result.parity.images.startswith("synthetic"):
        note(f"warning: the parity gate used images that are {result.parity.images}; name the real ones with --data")
    if result.parity is not None and result.parity.classes_seen < 2:
        note("warning: the model gave one answer for all parity images: the comparison says little")
    if result.pending is not None:
        note(
            f"warning: parity gate pending: {result.pending}. smx will not run this plan; on the machine with the GPU "
            f"build and check it with: smx export {result.path / 'model.onnx'} --format trt --out NEW_FOLDER"
        )
    if json:
        print_json(
            {
                "path": str(result.path),
                "artefact": str(result.artefact),
                "sha256": result.sha256,
                "parity": None if result.parity is None else asdict(result.parity),
                "pending": result.pending,
                "assumptions": result.assumptions,
            }
        )
        return
    show(f"{result.artefact}: SHA-256 {result.sha256}")
    if result.parity is not None:
        of = "of its ONNX file " if result.pending else ""
        show(f"parity gate {of}passed: {result.parity.summary}, on {result.parity.images}")
    if result.pending is None:
        note(f"next: smx certify {result.path} --out certs.jsonl")
