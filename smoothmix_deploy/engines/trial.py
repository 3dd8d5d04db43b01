"""Loads and runs an ONNX file in a child process, so that one that crashes its runtime does not crash ours.

`python -m smoothmix_deploy.engines.trial FILE ENGINE ROWS` ends well whatever it finds, unless the runtime crashes or wants
more memory or time than it is given. ENGINE "onnx" stands for what an export does to a stranger's graph before any
runtime sees it: the checker, shape inference and the conversion to later opsets are C++ as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from ..errors import BadInput
from ..files import sha256_file

_SECONDS = 300
_OUT_OF_MEMORY = 12
_passed: set[tuple[str, str, int]] = set()
"""Digest, engine and rows of what this process has seen pass."""


def check_in_child(file: Path, engine: str = "ort", rows: int = 1) -> None:
    """BadInput if loading `file` on `engine` for batches of `rows` kills the process that does it, takes minutes or
    more memory than half the machine's. What has passed once in this process is not tried again."""
    key = (sha256_file(file), engine, rows)
    if key in _passed:
        return
    command = [sys.executable, "-m", __name__, str(file), engine, str(rows)]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, env=_environment())
    except subprocess.TimeoutExpired:
        raise BadInput(f"{file}: {engine} was not done loading it after {_SECONDS} s; refused") from None
    if found.returncode == _OUT_OF_MEMORY:
        raise BadInput(f"{file}: {engine} asks for more than half of this machine's memory to run it; refused")
    if found.returncode < 0:
        raise BadInput(
            f"{file}: loading it crashes {engine} ({_signal_name(-found.returncode)}): a damaged or hostile file; refused"
        )
    _passed.add(key)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _environment() -> dict[str, str]:
    """The child finds this package where the parent did."""
    here = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def _limit_resources(file: str) -> None:
    """Address space and processor time. Where the system has no such limits, only the parent's clock is left."""
    try:
        import resource
    except ImportError:
        return
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    space = max(physical // 2, (4 << 30) + 4 * os.path.getsize(file))
    for kind, limit in ((resource.RLIMIT_AS, space), (resource.RLIMIT_CPU, 2 * _SECONDS)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _check_graph(file: str) -> None:
    import onnx

    model = onnx.load(file)
    onnx.checker.check_model(model)
    with contextlib.suppress(Exception):
        onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnx.version_converter.convert_version(model, max(22, model.opset_import[0].version))


def _load(file: str, engine: str, rows: int) -> None:
    """Load and, where the input's shape allows, run on zeros. Errors are not the question: crashes are."""
    import numpy as np

    if engine == "onnx":
        _check_graph(file)
        return
    if engine == "openvino":
        from dataclasses import replace

        from ..artefacts import open_artefact
        from .openvino import OpenVinoEngine

        artefact = open_artefact(file)
        OpenVinoEngine(
            replace(artefact, gated=True, described_by=artefact.file), batch_size=rows, threads=None, low_latency=True
        )
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
    _limit_resources(sys.argv[1])
    try:
        _load(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except Exception as problem:  # not the question, except for memory, which the parent has no limit for
        said = str(problem).lower()
        if isinstance(problem, MemoryError) or "alloc" in said or "out of memory" in said:
            sys.exit(_OUT_OF_MEMORY)
