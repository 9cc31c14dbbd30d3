"""How a DataLoader's workers are started, as a setting.

A worker that is forked begins as a copy of the training process: at once, with all that this holds
in memory, and with whatever state its libraries are in. One that is spawned, or forked from a fork
server, begins as a new Python that imports the script.
"""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

# The values of the setting. They are stored in studies: never rename one, never change the order.
DEFAULT, _FORK, _FORK_SERVER, _ = START_METHODS = ("default", "fork", "forkserver", "spawn")


def start_method_of(loader: DataLoader[Any]) -> str:
    """How a DataLoader starts its workers; "default" without any, and where no word says how."""
    context = loader.multiprocessing_context if loader.num_workers else None
    method = None if context is None else context.get_start_method()
    return method if method in START_METHODS else DEFAULT


def worth_trying() -> tuple[str, ...]:
    """The start method of the other kind than Python's default, where there is one.

    Workers that are spawned run as those of a fork server do, and begin later.
    """
    default, *others = multiprocessing.get_all_start_methods()
    other = _FORK if default == _FORK_SERVER else _FORK_SERVER
    return (other,) if other in others else ()
