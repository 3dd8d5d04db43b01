"""What `torchrun` says of this process. Imports no torch: the command line asks before it prints."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process among those of its run; by default the only one."""

    rank: int = 0
    local_rank: int = 0
    """Among those of this machine."""
    world_size: int = 1
    local_world_size: int = 1


def launched() -> Launch:
    """As told by torchrun through the environment; without torchrun, one process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Launch()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))
