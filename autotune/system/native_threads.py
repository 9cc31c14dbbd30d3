"""Which libraries the native threads of this process belong to, on Linux."""

from __future__ import annotations

import bisect
import contextlib
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_TASKS = Path("/proc/self/task")
_WORD = struct.Struct("N")
# Callers of what a thread waits in are found within so much of its stack.
_STACK_BYTES = 8192
# Code that waits on behalf of others.
_WAITS_FOR_OTHERS = ("libc.", "libc-", "libpthread", "libstdc++", "ld-linux", "ld-musl", "[vdso]")
# Modules of Python's own library start no native threads: a word that points there does by chance.
_STANDARD_LIBRARY = "/lib-dynload/"
# A pool's threads run for a while before they sleep, and then it can be told whose they are. Where
# others use the cores, that took up to 0.2 s.
_PATIENCE_S, _LOOK_S = 1.0, 0.01


class _Mapping(NamedTuple):
    """A range of addresses, and the file that is mapped there."""

    start: int
    end: int
    is_code: bool
    path: str


def task_ids() -> list[int]:
    """The threads of this process by the kernel's numbers; empty where that is not known."""
    with contextlib.suppress(OSError):
        return sorted(int(task.name) for task in _TASKS.iterdir())
    return []


def name_of(task_id: int) -> str:
    """What a thread of this process calls itself: most are called as the process is."""
    with contextlib.suppress(OSError):
        return (_TASKS / str(task_id) / "comm").read_text().strip()
    return ""


def libraries_of(task_ids: Iterable[int]) -> dict[int, str | None]:
    """The library in which each of some threads of this process waits, as `library_of` has it.

    Threads that run are waited for, all of them together for a second.
    """
    end_s = time.monotonic() + _PATIENCE_S
    return {task: library_of(task, end_s) for task in task_ids}


def library_of(task_id: int, end_s: float) -> str | None:
    """The library in which a thread of this process waits: a path, or None if it cannot be told.

    A thread that waits does so for the innermost function on its stack that is of no system
    library. The kernel tells where the stack of a waiting thread is; every word on it that points
    into code is taken for a return address.

    Args:
        task_id: By the kernel's number.
        end_s: Monotonic time until which one that runs is waited for.

    Source: proc_pid_syscall(5), proc_pid_maps(5), proc_pid_mem(5).
    """
    while True:
        with contextlib.suppress(OSError, ValueError, struct.error):
            fields = (_TASKS / str(task_id) / "syscall").read_text().split()
            if len(fields) > 2:
                return _first_caller(int(fields[-2], 16))
            if fields == ["running"] and time.monotonic() < end_s:
                time.sleep(_LOOK_S)
                continue
        return None


def _first_caller(stack_pointer: int) -> str | None:
    mappings = _mappings()
    starts = [mapping.start for mapping in mappings]

    def find(address: int) -> _Mapping | None:
        mapping = mappings[bisect.bisect_right(starts, address) - 1]
        return mapping if mapping.start <= address < mapping.end else None

    stack = find(stack_pointer)
    if stack is None:
        return None
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        memory.seek(stack_pointer)
        content = memory.read(min(_STACK_BYTES, stack.end - stack_pointer))
    for (address,) in _WORD.iter_unpack(content[: len(content) // _WORD.size * _WORD.size]):
        found = find(address)
        path = found.path if found is not None and found.is_code else ""
        if _STANDARD_LIBRARY in path:
            continue
        if path and not Path(path).name.startswith(_WAITS_FOR_OTHERS):
            return path
    return None


def _mappings() -> list[_Mapping]:
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *path = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        found.append(_Mapping(start, end, "x" in permissions, path[0] if path else ""))
    return found
