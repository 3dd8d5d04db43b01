"""From the options of `smx certify` to a team of workers: processes of this machine, or Ray actors."""

from __future__ import annotations

from typing import Any

from ..artefacts import Artefact
from ..certificates import Manifest
from ..engines.base import usable_cores
from ..errors import BadInput
from .driver import Fleet, Team, identity
from .settings import Note
from .worker import WorkerSpec

_MOST_WORKERS = 4096


def check_workers(workers: int | None, ray: str | None, reuse: bool) -> None:
    """BadInput for what cannot be."""
    if workers is None:
        if ray is not None:
            raise BadInput(f"--ray {ray}: needs --workers N, the number of actors")
        return
    if not 1 <= workers <= _MOST_WORKERS:
        raise BadInput(f"--workers {workers}: must be between 1 and {_MOST_WORKERS}")
    if reuse:
        raise BadInput(f"--workers {workers}: not together with --reuse; use --shard i/k, then smx merge")


def workers_threads(workers: int, ray: str | None, device: str) -> int | None:
    """Threads of each worker where none were asked for: its share of the cores; None where GPUs do the work."""
    from .local_workers import visible_gpus

    if device == "cuda" or (device == "auto" and visible_gpus()):
        return None
    return 1 if ray is not None else max(1, usable_cores() // workers)


def open_team(
    workers: int, ray: str | None, manifest: Manifest | None, *, artefact: Artefact, engine: str | None,
    batch_size: int | None, device: str, threads: int | None, data: dict[str, Any], indices: range, sigma: float,
    key: str, noise: str, note: Note,
) -> Team:  # fmt: skip
    """`manifest`: of the file that is resumed. Unavailable if Ray is asked for and missing."""
    spec = WorkerSpec(
        artefact=str(artefact.path.resolve()), engine=engine, batch_size=batch_size, device=device, threads=threads,
        data=data["name"], data_root=data["root"], split=data["split"], indices=indices, sigma=sigma, key=key,
        noise=noise, may_halve=manifest is None,
    )  # fmt: skip
    expected = None
    if manifest is not None:
        expected = identity(manifest.engine, manifest.artefact["sha256"], manifest.data["digest"])
    fleet: Fleet
    if ray is None:
        from .local_workers import LocalFleet

        fleet = LocalFleet(workers, spec)
    else:
        from .ray_workers import RayFleet

        fleet = RayFleet(ray, workers, spec)
    return Team(fleet, note, expected)
