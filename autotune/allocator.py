"""The C library's memory allocator as a setting: what it does with memory that is freed.

A step on a CPU frees its activations and takes as much again in the next one. By default glibc
gives large blocks back to the system at once, which then has to clear each page anew before it is
used (docs/allocator.md).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

# The values of the setting. They are stored in studies: never rename one, never change the order.
DEFAULT, KEPT = ALLOCATORS = ("default", "kept")
# Parameters of mallopt(3), by the names that glibc reads from the environment of a new process.
# Source: malloc.h and the manual page.
_PARAMETERS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_MAX_": -4}
# Never give the end of the heap back; have no block outside of it. Both hold for the heap of the
# main thread: others have heaps of 64 MiB, beyond which blocks are mapped one by one.
_VALUES = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_MAX_": 0}


def apply_allocator(name: str) -> None:
    """Set up the allocator of this process; "default" leaves it untouched.

    "kept" has freed memory stay with the process, to be used again. What was taken before is not
    moved. Another C library than glibc, and an allocator that is loaded in its place, do not know
    these parameters, and stay as they are.

    Args:
        name: One of `ALLOCATORS`.
    """
    if name == KEPT and is_tunable():
        for variable, parameter in _PARAMETERS.items():
            _c_library().mallopt(parameter, _VALUES[variable])


def is_tunable() -> bool:
    """Whether the C library here knows the parameters."""
    return sys.platform.startswith("linux") and hasattr(_c_library(), "mallopt")


def is_set_outside(environment: Mapping[str, str]) -> bool:
    """Whether a process with these variables keeps its memory whatever its settings say."""
    return allocator_environment(KEPT).items() <= environment.items()


def allocator_environment(name: str) -> Mapping[str, str]:
    """The variables that say the same to a process before it starts."""
    return {key: str(value) for key, value in _VALUES.items()} if name == KEPT else {}


def _c_library() -> Any:  # noqa: ANN401
    # Imported here: most processes need none of it.
    import ctypes

    return ctypes.CDLL(None)
