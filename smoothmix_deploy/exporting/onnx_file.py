"""Builds `model.onnx` from a base classifier: dynamic batch, weights inside, our metadata."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..artefacts import METADATA_KEY
from ..errors import BadInput
from ..models.build import BaseClassifier

INPUT, OUTPUT = "images", "logits"
OPSET = 20


@dataclass(frozen=True)
class OnnxFacts:
    """What a manifest says of the file."""

    opset: int
    input_name: str
    output_name: str


def write_onnx(
    model: BaseClassifier, input_shape: tuple[int, int, int], path: Path, metadata: dict[str, Any]
) -> OnnxFacts:
    """Export `model` in eval mode, float32, batch dimension free. BadInput if torch.onnx cannot express it."""
    model = model.eval().cpu()
    example = torch.zeros(2, *input_shape)
    batch = torch.export.Dim("batch")
    try:
        # The exporter prints its steps and warns of things that concern its own developers.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            _quiet("torch.onnx", "onnxscript"),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"x": {0: batch}},
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            program.model.metadata_props[METADATA_KEY] = json.dumps(metadata)
            program.save(str(path), external_data=False)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"torch.onnx cannot export this network ({reason})") from None
    return OnnxFacts(OPSET, INPUT, OUTPUT)


@contextlib.contextmanager
def _quiet(*names: str) -> Any:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
