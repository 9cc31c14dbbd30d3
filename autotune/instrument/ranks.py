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
    """

    rank: int
    world_size: int
    is_distributed: bool


def find_place() -> Place:
    """The place of this process.

    Where torch.distributed is initialised it knows: ranks that mp.spawn or a person started need
    no variable. Elsewhere the variables tell that torchrun sets.

    Source: https://docs.pytorch.org/docs/stable/elastic/run.html (environment variables)
    """
    if is_initialized():
        distributed = sys.modules["torch.distributed"]
        return Place(int(distributed.get_rank()), int(distributed.get_world_size()), True)
    rank, world_size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if rank.isdecimal() and world_size.isdecimal():
        return Place(int(rank), int(world_size), True)
    return Place(0, 1, False)


def is_initialized() -> bool:
    """Whether torch.distributed is initialised in this process."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is not None
        and bool(distributed.is_available())
        and bool(distributed.is_initialized())
    )
