"""The processes of one data-parallel run: what they add up, agree on and tell each other.

With one process every function here is immediate. Knows nothing about what is trained. Gradients are added up by hand,
not by DistributedDataParallel (docs/decisions.md says why).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed.nn  # before any group exists: what it imports keeps the group of that time for ever
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import SmxError, Stopped, Unavailable
from .launch import Launch

T = TypeVar("T")
Net = TypeVar("Net", bound=nn.Module)
_LONGEST_WAIT = timedelta(hours=2)
"""Of the other processes for process 0, which evaluates and writes; one that died is noticed at once."""
_LAST_WORDS_SECONDS = 1.0
"""For process 0 to say what is wrong: torchrun ends all processes as soon as the first one has ended."""


class Processes:
    """This process among those of its run. All must call the same methods in the same order."""

    def __init__(self, launch: Launch | None = None) -> None:
        launch = launch or Launch()
        self.rank, self.world_size = launch.rank, launch.world_size

    @property
    def leads(self) -> bool:
        """Whether this is process 0, which alone evaluates, writes files and reports."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set in any process. Touches no GPU."""
        if self.world_size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        with _peers():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found]

    def together(self, action: Callable[[], T]) -> T:
        """Every process does it; where one fails, all raise its error (the first one's, if several do)."""
        if self.world_size == 1:
            return action()
        try:
            result, problem = action(), None
        except (SmxError, OSError) as error:
            problem = error
        if self.any(problem is not None)[0]:
            raise next(error for error in self.gather(problem) if error is not None)
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        found: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            with _peers():
                distributed.all_gather_object(found, value)
        return found

    def lead(self, action: Callable[[], T]) -> T:
        """Process 0 does it, all have the result, or raise the error."""
        return self._from_first(self.together(lambda: action() if self.leads else None))

    def _from_first(self, value: Any) -> Any:
        found = [value]
        if self.world_size > 1:
            with _peers():
                distributed.broadcast_object_list(found)
        return found[0]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes: one message, in the first one's type."""
        if self.world_size == 1:
            return
        flat = torch.cat([tensor.reshape(-1).to(tensors[0].dtype) for tensor in tensors])
        with _peers():
            distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view(tensor.shape))


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo: "Connection closed by peer"
        raise Stopped(
            f"another process of this run has ended ({' '.join(str(error).split())[:120]}); "
            "run the same command with --resume to go on"
        ) from None


@contextmanager
def joined(launch: Launch, device: torch.device) -> Iterator[Processes]:
    """Join the other processes of the run: gradients travel by NCCL between GPUs, everything else by gloo."""
    if launch.world_size == 1 or distributed.is_initialized():
        yield Processes(launch)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _peers():
        distributed.init_process_group(backend, rank=launch.rank, world_size=launch.world_size, timeout=_LONGEST_WAIT)
    try:
        yield Processes(launch)
    except BaseException:
        if launch.rank:
            time.sleep(_LAST_WORDS_SECONDS)
        raise
    finally:
        distributed.destroy_process_group()


def own_device(device: torch.device, launch: Launch) -> torch.device:
    """The GPU of this process; Unavailable, on every process, where the machine has fewer than processes."""
    if device.type != "cuda" or launch.world_size == 1:
        return device
    if launch.local_world_size > torch.cuda.device_count():
        raise Unavailable(
            f"{launch.local_world_size} processes on this machine, but PyTorch sees {torch.cuda.device_count()} GPUs: "
            "lower --nproc-per-node of torchrun, or use --device cpu"
        )
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)


def share_batch_norm(net: Net, device: torch.device, world_size: int) -> Net:
    """On GPUs `net` with BatchNorm over the images of all processes; PyTorch has none on the CPU (see `local_statistics`)."""
    if world_size == 1 or device.type != "cuda":
        return net
    if any(isinstance(module, _BatchNorm) and type(module).__module__.startswith("timm.") for module in net.modules()):
        from timm.layers import convert_sync_batchnorm  # knows those with an activation inside

        return convert_sync_batchnorm(net)
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def local_statistics(net: nn.Module) -> list[torch.Tensor]:
    """Running means and variances that each process would keep for itself."""
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    return [buffer for m in norms for buffer in (m.running_mean, m.running_var) if buffer is not None]
