"""Builds `model.xml` and `model.bin`, OpenVINO's own format, from an ONNX file."""

from __future__ import annotations

from pathlib import Path

from ..engines.trial import check_in_child
from ..errors import BadInput, Unavailable
from ..messages import first_line


def build_openvino(onnx_file: Path, out: Path) -> None:
    """Write `out` (.xml) and its .bin. Types stay as the ONNX file has them. Raises BadInput or Unavailable."""
    try:
        import openvino
    except ImportError as error:
        raise Unavailable(
            f"--format openvino: openvino cannot be imported ({first_line(error)}); install smoothmix-deploy[openvino]"
        ) from None
    check_in_child(onnx_file, "openvino")  # what others wrote may crash it, even if ONNX Runtime takes it
    try:
        openvino.save_model(openvino.convert_model(str(onnx_file)), str(out), compress_to_fp16=False)
    except Exception as error:  # its exceptions have no common base class of their own
        raise BadInput(f"--format openvino: OpenVINO cannot convert the network ({first_line(error)})") from None
