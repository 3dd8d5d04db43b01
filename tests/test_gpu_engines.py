"""What of the GPU engines can be tested without a GPU."""

from types import SimpleNamespace

import pytest

import smoothmix_deploy as smx
from smoothmix_deploy.engines import trt_bindings
from smoothmix_deploy.engines.ort_session import _check_provider
from smoothmix_deploy.exporting.plan_file import count_layer_types


def test_layer_types_however_tensorrt_says_them():
    """The builder's log, the inspector's JSON, and the longer words of older releases."""
    said = """Inputs: [ { Name: x, Datatype: Float, Format: (Linear) Row major linear format }]
        {"Name": "x", "Format/Datatype": "Half"}, {"Name": "x", "Datatype": "BFloat16", "Format": "Row major"}
        {"Format/Datatype": "Row major linear FP16 format"},
        {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}"""
    assert count_layer_types(said) == {"Float": 1, "Half": 2, "BFloat16": 1, "Int8": 1}


def test_provider_that_does_not_load_is_unavailable(tmp_path):
    """Exit code 4 and the linker's reason, not a complaint about the model."""
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    ort = SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    with pytest.raises(smx.Unavailable, match="CUDAExecutionProvider does not load"):
        _check_provider(ort, "CUDAExecutionProvider")
    _check_provider(ort, "CPUExecutionProvider")


def test_tensorrt_has_one_logger():
    """It keeps the first it is given; the lines of an earlier use are not taken for those of a later one."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    first = trt_bindings.make_logger(trt)
    first.log(trt.ILogger.Severity.ERROR, "something\nlonger")
    assert first.errors() == "something"
    assert trt_bindings.make_logger(trt) is first
    assert not first.errors()
