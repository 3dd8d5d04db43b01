"""Builds `model.onnx` from a base classifier: dynamic batch, weights inside, our metadata."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from ..artefacts import METADATA_KEY
from ..errors import BadInput
from ..messages import first_line
from ..models.build import BaseClassifier

INPUT, OUTPUT = "images", "logits"
OPSET = 20


def onnx_of_model(model: BaseClassifier, input_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """`model` in eval mode, float32, batch dimension free. BadInput if torch.onnx cannot express it."""
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
            proto: onnx.ModelProto = program.model_proto
            return proto
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise BadInput(f"torch.onnx cannot export this network ({first_line(error)})") from None


def save_onnx(model: onnx.ModelProto, path: Path, metadata: dict[str, Any]) -> int:
    """Write `model` with our metadata, which ONNX Runtime and others show; its opset."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**entries, METADATA_KEY: json.dumps(metadata)})
    try:
        onnx.save(model, str(path))
    except ValueError as error:  # protobuf's limit of 2 GB
        raise BadInput(f"the network does not fit into one ONNX file ({first_line(error)})") from None
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def write_onnx(model: BaseClassifier, input_shape: tuple[int, int, int], path: Path, metadata: dict[str, Any]) -> int:
    """Export `model` in float32 to `path`; the file's opset."""
    return save_onnx(onnx_of_model(model, input_shape), path, metadata)


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
