"""How many ranks torchrun starts on each machine, in a command that names torchrun.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html (--nproc-per-node).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from autotune.errors import BadInputError

_OPTIONS = ("--nproc-per-node", "--nproc_per_node")
_MODULES = ("torch.distributed.run", "torch.distributed.launch")


def with_ranks_per_node(command: Sequence[str], number: int) -> tuple[str, ...]:
    """The command with another number of ranks on each machine.

    Raises:
        BadInputError: Nothing in it is torchrun.
    """
    words = list(command)
    place = _place_of_torchrun(words)
    if place is None:
        raise BadInputError(
            "ranks_per_node: the command must start its ranks with torchrun, whose option "
            f"--nproc-per-node is changed, and {words[0]!r} is something else"
        )
    for index in range(place + 1, len(words)):
        name, _, value = words[index].partition("=")
        if name not in _OPTIONS:
            continue
        if value:
            words[index] = f"{name}={number}"
        else:
            words[index + 1 : index + 2] = [str(number)]
        return tuple(words)
    return (*words[: place + 1], _OPTIONS[0], str(number), *words[place + 1 :])


def _place_of_torchrun(words: Sequence[str]) -> int | None:
    for index, word in enumerate(words):
        if PurePath(word).name == "torchrun" or (words[index - 1] == "-m" and word in _MODULES):
            return index
    return None
