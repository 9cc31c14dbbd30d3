"""Where hung processes stood, from what Python printed when they were aborted."""

from __future__ import annotations

import re
from pathlib import Path

from autotune.system.own_code import is_own_code

# Set for every process that is started: its Python prints the stack of each of its threads when a
# signal such as SIGABRT or SIGSEGV ends it, workers included.
# Source: https://docs.python.org/3/library/faulthandler.html
STACKS_AT_ABORT = {"PYTHONFAULTHANDLER": "1"}

_STACK = re.compile(r"most recent call first\):\n((?:  File .+\n?)+)")
_FRAME = re.compile(r'  File "(.+)", line (\d+) in (.+)')
_MOST = 3


def where_it_stood(output: str) -> str | None:
    """The innermost lines of the user's own code, a process or thread after another.

    Args:
        output: What the processes printed.

    Returns:
        Such as "train.py:12 in __getitem__, train.py:30 in main"; None where nothing is told.
    """
    found = [_innermost(stack) for stack in _STACK.findall(output)]
    places = list(dict.fromkeys(place for place in found if place is not None))
    # Workers and threads print after the one that started them, and are what it waits for.
    return ", ".join(reversed(places[-_MOST:])) or None


def _innermost(stack: str) -> str | None:
    for file, line, name in _FRAME.findall(stack):
        if is_own_code(file):
            return f"{Path(file).name}:{line} in {name}"
    return None
