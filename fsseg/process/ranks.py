"""Which of several processes this one is, found without torch. `fsseg.engine.distributed` connects them."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """The processes that work on one cell; by default there is one."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0


ALONE = Ranks()


def several_expected() -> bool:
    """Whether environment variables announce several processes: of torchrun, or of submitit with several tasks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or submitit_tasks() > 1


def first_of_several() -> bool:
    """Whether this process is the first one, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def submitit_tasks() -> int:
    """Tasks of the submitit job that this process belongs to; 1 outside of one.

    SLURM's own variables alone do not count: `salloc -n 4` sets them without starting four processes.
    """
    names = {"slurm": "SLURM_NTASKS", "local": "SUBMITIT_LOCAL_NTASKS"}
    return int(os.environ.get(names.get(os.environ.get("SUBMITIT_EXECUTOR", ""), ""), "1"))
