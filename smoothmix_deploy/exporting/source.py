"""What is exported: a run folder, or an ONNX file of ours or of anybody's. Two look-alikes behind one interface.

A source knows its network's facts, gives the engine that the parity gate compares with, and writes itself as ONNX in our
form: float32 images [batch, C, H, W] in [0, 1] in, logits [batch, K] out. Knows nothing about target formats.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx

from ..artefacts import Artefact, open_artefact
from ..engines import Engine, open_engine
from ..errors import BadInput
from ..messages import first_line
from ..models.run_folder import load_model, read_config
from ..onnx_reading import load_onnx
from .adapter import AdaptedEngine, Adapter
from .inspection import InputHints, inspect
from .onnx_file import onnx_of_model


@dataclass(frozen=True)
class ModelFacts:
    """What a manifest says of the network, whatever it is exported to. None: nobody knows."""

    input_shape: tuple[int, int, int]
    """C, H, W."""
    num_classes: int
    class_names: list[str] | None
    sigma: float | None
    precision: str
    """Of the source's own weights."""
    weights_sha256: str | None
    data: dict[str, Any] | None
    normalisation: dict[str, Any]
    arch: str | None = None
    method: str | None = None
    fixed_batch: int | None = None
    """The only batch size that it takes; None: any."""
    assumptions: list[str] = field(default_factory=list)
    """What was not written anywhere and had to be assumed."""


class Source(Protocol):
    """Something to export."""

    artefact: Artefact
    facts: ModelFacts

    def reference(self, batch_size: int, device: str) -> Engine:
        """The engine whose votes an artefact has to reproduce."""
        ...

    def network(self) -> onnx.ModelProto:
        """The float network in our form, without metadata. BadInput if it cannot be expressed."""
        ...


class RunSource:
    """A run folder: compared with PyTorch in float32."""

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        config = self._config = read_config(artefact.path)
        self.facts = ModelFacts(
            input_shape=config.input_shape,
            num_classes=config.num_classes,
            class_names=config.class_names,
            sigma=config.sigma,
            precision="fp32",
            weights_sha256=artefact.weights_sha256,
            data={key: config.data.get(key) for key in ("name", "root")},
            normalisation={"in_graph": True, "mean_sd": config.mean_sd},
            arch=config.arch,
            method=config.method,
        )

    def reference(self, batch_size: int, device: str) -> Engine:
        """PyTorch, eager."""
        return open_engine(self.artefact, "torch", device=device, batch_size=batch_size)

    def network(self) -> onnx.ModelProto:
        """By torch.onnx."""
        return onnx_of_model(load_model(self.artefact.path, self._config), self._config.input_shape)


class OnnxSource:
    """An ONNX file: compared with itself, untouched, on ONNX Runtime, with its inputs prepared outside the graph."""

    def __init__(self, artefact: Artefact, hints: InputHints) -> None:
        self.artefact = artefact
        self._model = load_onnx(artefact.file)
        self._adapter: Adapter = inspect(artefact, self._model, hints)
        a = self._adapter
        self.facts = ModelFacts(
            input_shape=a.shape,
            num_classes=a.num_classes,
            class_names=artefact.class_names,
            sigma=artefact.sigma,
            precision=artefact.precision or a.precision,
            weights_sha256=artefact.weights_sha256,
            data=artefact.data,
            normalisation={"in_graph": True, "added": asdict(hints) if a.added else None},
            fixed_batch=a.fixed_batch,
            assumptions=a.assumptions,
        )

    def reference(self, batch_size: int, device: str) -> Engine:
        """ONNX Runtime on the CPU, on the file as it came."""
        return AdaptedEngine(self.artefact, self._adapter, batch_size)

    def network(self) -> onnx.ModelProto:
        """The file's graph between our input and our output."""
        return self._adapter.apply(self._model)


class SelfContainedSource(OnnxSource):
    """An ONNX file whose weights lay in other files: a copy of it, with all of them inside, lives as long as this."""

    def __init__(self, path: Path, hints: InputHints) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="smx-")
        copy = Path(self._folder.name) / path.name
        try:
            copy.write_bytes(load_onnx(path, external=True).SerializeToString())
        except ValueError as error:  # protobuf's limit of 2 GB
            raise BadInput(f"{path}: does not fit into one ONNX file with its weights ({first_line(error)})") from None
        super().__init__(open_artefact(copy), hints)
        self.facts.assumptions.append("the weights lay in other files and were put inside; SHA-256 is of the whole")


def open_source(path: Path, hints: InputHints, *, allow_external_data: bool = False) -> Source:
    """The source at `path`. BadInput for anything else than a run folder or an ONNX file, and for useless hints."""
    if allow_external_data and path.suffix == ".onnx" and path.is_file():
        return SelfContainedSource(path, hints)
    artefact = open_artefact(path)
    if artefact.kind == "run":
        if hints != InputHints():
            raise BadInput(
                f"--layout, --input-range, --mean, --std: {path} is a run folder, which says all that itself"
            )
        return RunSource(artefact)
    if artefact.kind == "onnx":
        return OnnxSource(artefact, hints)
    raise BadInput(f"{path}: {artefact.description} cannot be exported again; name the run folder or its model.onnx")
