"""Loads and runs an ONNX file in a child process, so that one that crashes its runtime does not crash ours.

`python -m smoothmix_deploy.engines.trial FILE ENGINE ROWS` ends well whatever it finds, unless the runtime crashes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from ..errors import BadInput

_SECONDS = 300


def check_in_child(file: Path, engine: str = "ort", rows: int = 1) -> None:
    """BadInput if loading `file` on `engine` for batches of `rows` kills the process that does it, or takes minutes."""
    command = [sys.executable, "-m", __name__, str(file), engine, str(rows)]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, env=_environment())
    except subprocess.TimeoutExpired:
        raise BadInput(f"{file}: {engine} was not done loading it after {_SECONDS} s; refused") from None
    if found.returncode < 0:
        raise BadInput(
            f"{file}: loading it crashes {engine} ({_signal_name(-found.returncode)}): a damaged or hostile file; refused"
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _environment() -> dict[str, str]:
    """The child finds this package where the parent did."""
    here = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def _load(file: str, engine: str, rows: int) -> None:
    """Load and, where the input's shape allows, run on zeros. Errors are not the question: crashes are."""
    import numpy as np

    if engine == "openvino":
        from dataclasses import replace

        from ..artefacts import open_artefact
        from .openvino import OpenVinoEngine

        OpenVinoEngine(replace(open_artefact(file), gated=True), batch_size=rows, threads=None, low_latency=True)
        return
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    types = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}
    zeros = {
        i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], types.get(i.type, np.float32))
        for i in session.get_inputs()
    }
    session.run(None, zeros)


if __name__ == "__main__":
    with contextlib.suppress(Exception):
        _load(sys.argv[1], sys.argv[2], int(sys.argv[3]))
