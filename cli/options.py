"""Options that several commands share, so that they are the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits, mnist, fashion-mnist, cifar10, cifar100, svhn, imagenet, npz:PATH, folder:PATH.",
    ),
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder of torchvision's data sets.")]
Split = Annotated[str, typer.Option("--split", help="train or test.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a missing data set into --data-root.")]
Start = Annotated[int | None, typer.Option("--start", help="First image.")]
Stop = Annotated[int | None, typer.Option("--stop", help="Stop before this image.")]
Skip = Annotated[int | None, typer.Option("--skip", help="Take every SKIP-th image.")]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine", help="torch, torch-compile, ort, ort-cuda, ort-trt, trt or openvino; default: the best that works."
    ),
]
Sigma = Annotated[float | None, typer.Option("--sigma", help="Noise level; default: the artefact's.")]
Alpha = Annotated[float, typer.Option("--alpha", help="Error probability of one image's certificate.")]
AlphaFamily = Annotated[
    float | None,
    typer.Option("--alpha-family", help="Error probability of all selected images together, in place of --alpha."),
]
Rule = Annotated[
    str, typer.Option("--rule", help="fixed, two-class, radius (--radius), grid (--grid) or anytime (--tolerance).")
]
Radius = Annotated[float | None, typer.Option("--radius", help="For --rule radius: certified at this radius, or not.")]
Grid = Annotated[float | None, typer.Option("--grid", help="For --rule grid: the step between radii.")]
Tolerance = Annotated[
    float | None, typer.Option("--tolerance", help="For --rule anytime: stop when the radius can grow by no more.")
]
Noise = Annotated[str, typer.Option("--noise", help="gaussian, or grid: sound in floating point, 8-bit images.")]
N0 = Annotated[int, typer.Option("--n0", help="Samples that choose the class.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Rows of every batch; default: suits the input.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of the engine; default: its own choice.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Reproduce a run; default: the operating system's entropy.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
