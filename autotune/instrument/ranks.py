"""Which rank of which job this process is."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple


class Place(NamedTuple):
    """The place of a process in a job of torch.distributed.

    Attributes:
        rank: Its rank, 0 where there is no job.
        world_size: How many processes train together.
        is_distributed: Whether there is a job, be this process the only one of it.
        local_world_size: How many of them run on this machine; None where nobody says.
    """

    rank: int
    world_size: int
    is_distributed: bool
    local_world_size: int | None = None

    @property
    def num_here(self) -> int:
        """How many of them run on this machine; all, where nobody says."""
        return self.world_size if self.local_world_size is None else self.local_world_size

    @property
    def may_span_machines(self) -> bool:
        """Whether some of the job's processes may run on other machines."""
        return self.local_world_size is not None and self.local_world_size < self.world_size


# What launchers set for a rank: its number, how many there are, and how many on its machine.
# SLURM_STEP_NUM_TASKS and not SLURM_NTASKS, which a batch script has for tasks that never start.
# Sources: https://docs.pytorch.org/docs/stable/elastic/run.html (environment variables);
# https://slurm.schedmd.com/srun.html (output environment variables);
# https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html.
_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)


def find_place() -> Place:
    """The place of this process.

    Where torch.distributed is initialised it knows: ranks that mp.spawn or a person started need
    no variable. Elsewhere the variables tell that torchrun, Slurm or Open MPI set, in this order.
    """
    told = (_told_by(*names) for names in _VARIABLES)
    found = next((place for place in told if place is not None), None)
    if is_initialized():
        distributed = sys.modules["torch.distributed"]
        rank, world_size = int(distributed.get_rank()), int(distributed.get_world_size())
        is_same = found is not None and (found.rank, found.world_size) == (rank, world_size)
        return Place(rank, world_size, True, found.local_world_size if found and is_same else None)
    return found or Place(0, 1, False)


def is_initialized() -> bool:
    """Whether torch.distributed is initialised in this process."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is not None
        and bool(distributed.is_available())
        and bool(distributed.is_initialized())
    )


def _told_by(rank_name: str, size_name: str, local_name: str) -> Place | None:
    rank, world_size = os.environ.get(rank_name, ""), os.environ.get(size_name, "")
    if not (rank.isdecimal() and world_size.isdecimal()):
        return None
    # Slurm lists the tasks of each node, as in "2(x3),1": where these differ, the least.
    local = os.environ.get(local_name, "")
    counts = [part.partition("(")[0] for part in local.split(",")]
    known = all(count.isdecimal() for count in counts)
    place = Place(int(rank), int(world_size), True, min(map(int, counts)) if known else None)
    # A single task of Slurm is any process that was started by srun.
    return None if rank_name != "RANK" and place.world_size == 1 else place
