"""ONNX Runtime's default int8 kernels on x86 processors without VNNI add pairs of products in 16 bits and saturate.

The engine asks for exact ones. Here the very same artefact runs both ways on such a processor, the machine's own or one
that QEMU imitates, and the parity gate has to tell them apart.
"""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import save

import smoothmix_deploy as smx

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
IMAGES = (("x", TensorProto.FLOAT, ["batch", 1, 8, 8]),)

CHILD = """
import json, sys
import numpy as np
import onnxruntime as ort
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.data import InMemorySet
from smoothmix_deploy.engines import open_engine
from smoothmix_deploy.exporting.parity import check_parity

Plain = ort.SessionOptions

class Saturating(Plain):
    def add_session_config_entry(self, key, value):
        if key != "session.x64quantprecision":
            super().add_session_config_entry(key, value)

network, artefact = map(open_artefact, sys.argv[1:3])
pixels = np.repeat(np.float32([0.2, 0.42, 0.62, 0.9] * 8), 64).reshape(32, 8, 8, 1)
images = InMemorySet("grey", "test", pixels, np.zeros(32, np.int64), ["a"] * 4)
found = {}
for name, options in (("exact", Plain), ("saturating", Saturating)):
    ort.SessionOptions = options
    candidate = open_engine(artefact, "ort", batch_size=64, threads=1)
    ort.SessionOptions = Plain
    reference = open_engine(network, "ort", batch_size=64, threads=1)
    report = check_parity(
        reference, candidate, images, "grey", sigma=0.1, samples=512, max_disagreement=0.05, key="0" * 32,
        max_radius_lost=0.05,
    )
    found[name] = [report.passed, report.rate, report.max_logit_difference, report.classes_seen]
print(json.dumps(found))
"""


def brightness_network(path):
    """Which of four brightnesses is nearest? Measured by wide convolutions with large weights.

    All products are positive, so that sums of two exceed 16 bits: what saturates sees a darker image.
    """
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0.7, 1, size=(64, 1, 3, 3)) / 9, rng.uniform(0.7, 1, size=(32, 64, 3, 3)) / 576
    levels = np.array([0.25, 0.5, 0.75, 1.0]) * 0.6
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    # level * brightness - level^2 / 2 is largest for the level next to the brightness
    weights = {"w1": first, "w2": second, "w3": np.repeat(levels[:, None] / 32, 32, axis=1), "b3": -(levels**2) / 2}
    stored = [(name, values.astype(np.float32)) for name, values in weights.items()]
    return save(path, nodes, stored, inputs=IMAGES, output_shape=("batch", 4))


def without_vnni():
    """What a command has to begin with to run without VNNI; skips where there is no way."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        pytest.skip("the saturating kernels are those of x86 processors")
    if "vnni" not in Path("/proc/cpuinfo").read_text():
        return []
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("this processor has VNNI, and qemu-x86_64-static (Debian: qemu-user-static) is not installed")
    return [qemu, "-cpu", "Haswell"]


@pytest.mark.slow
def test_gate_refuses_saturating_kernels(tmp_path):
    """One artefact, one processor: refused without the engine's session option, passed with it."""
    prefix = without_vnni()
    network = brightness_network(tmp_path / "network.onnx")
    pixels = np.repeat(np.float32([0.2, 0.42, 0.62, 0.9] * 16), 64).reshape(64, 8, 8)  # amid the four classes
    np.savez(tmp_path / "pixels.npz", x=pixels, y=np.arange(64) % 4)
    artefact = smx.export(
        network, out=tmp_path / "int8", precision="int8", sigma=0.1, data=f"npz:{tmp_path / 'pixels.npz'}",
        calibration_samples=64, max_disagreement=0.05, seed=0,
    ).artefact  # fmt: skip
    command = [*prefix, sys.executable, "-c", CHILD, str(network), str(artefact)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    (passed, rate, _, classes), (passed_wrong, rate_wrong, *_) = found["exact"], found["saturating"]
    assert classes > 1
    assert passed, rate
    assert not passed_wrong
    assert rate_wrong > 0.3
