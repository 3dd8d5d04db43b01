"""The model card of a run folder, `MODEL_CARD.md`: what the model is, how it was trained, what is proved, what is not.

Markdown with a front matter that the Hugging Face Hub understands. What is said comes from the run folder and, where
there is one, from a report of certificate files, which the caller has checked (`reporting.card`); nobody's name and no
licence is made up. Knows nothing about data sets' files or engines.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import public_name
from ..files import sha256_file, to_json, write_text
from .run_folder import PLOT, WEIGHTS, RunConfig, read_config, read_metrics

if TYPE_CHECKING:
    from ..reporting.table import FileReport, Report

_HUB_DATA = {
    "mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100", "svhn": "ufldl-stanford/svhn", "imagenet": "ILSVRC/imagenet-1k",
}  # fmt: skip
_SHOWN_ELSEWHERE = {"method", "sigma", "epochs"}


def write_card(run: Path, out: Path, *, parameters: int, report: Report | None = None) -> None:
    """Write the card of the run folder `run` to `out`. `parameters`: how many numbers were trained."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    config, lines = read_config(run), read_metrics(run)
    environment = Environment(  # Markdown: what a file says is escaped by `plain`, not as HTML
        loader=PackageLoader("smoothmix_deploy", "models"), autoescape=False, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"plain": plain, "json": to_json}
    name = title(config)
    text = environment.get_template("model_card.md").render(
        title=name,
        config=config,
        data=public_name(config.data.get("name") or "unknown data"),
        hub_data=_HUB_DATA.get(str(config.data.get("name"))),
        model_index=_model_index(name, report) if report else None,
        public_name=public_name,
        weights=sha256_file(run / WEIGHTS),
        parameters=parameters,
        last=lines[-1] if lines else None,
        probe=next((line for line in reversed(lines) if line.get("probe")), None),
        hyper_parameters={k: v for k, v in config.hyper_parameters.items() if k not in _SHOWN_ELSEWHERE},
        plot=PLOT if (run / PLOT).exists() and out.absolute().parent == run.absolute() else None,
        report=report,
        certificates=sum(f.summary.images for f in report.files) if report else 0,
        expected_wrong=sum(f.summary.images * f.manifest.alpha for f in report.files if f.manifest) if report else 0,
    )
    write_text(out, text)


def title(config: RunConfig) -> str:
    """One line on what a run folder holds."""
    data = public_name(config.data.get("name") or "unknown data")
    return f"{config.arch} on {data}, {config.method}, sigma {config.sigma:g}"


def plain(value: Any) -> str:
    """A value as one line of Markdown text that is nothing but text."""
    if isinstance(value, float):
        return f"{value:g}"
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", " ".join(str(value).split()))


def _model_index(name: str, report: Report) -> list[dict[str, Any]]:
    """The certified figures as the Hub wants them."""
    return [{"name": name, "results": [_result(f, report.radii) for f in report.files]}]


def _result(f: FileReport, radii: list[float]) -> dict[str, Any]:
    m = f.manifest
    assert m is not None
    how = {
        "rule": f.rule,
        "n": m.n,
        "alpha": m.alpha,
        "sigma": m.sigma,
        "images": f.summary.images,
        "engine": m.engine["name"],
        "precision": m.artefact.get("precision"),
    }
    figures = [("accuracy", "Accuracy of the smoothed classifier", f.summary.accuracy)]
    figures += [("average_certified_radius", "Average certified L2 radius (ACR)", f.summary.acr)]
    figures += [("abstention_rate", "Abstention rate", f.summary.abstained)]
    figures += [
        ("certified_accuracy", f"Certified accuracy at L2 radius {r:g}", share)
        for r, share in zip(radii, f.certified, strict=True)
    ]
    data = m.data["name"]
    return {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {
            "type": _HUB_DATA.get(data, public_name(data)),
            "name": public_name(data),
            "split": m.data["split"],
        },
        "metrics": [{"type": kind, "name": text, "value": value, "args": how} for kind, text, value in figures],
    }
