"""Memory: of a process tree, read while it stands still, and what is left of the machine's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from autotune.system import cgroup

SHARED_MEMORY = Path("/dev/shm")


class TreeMemory:
    """Memory of the process tree below `root_pid`.

    Attributes:
        shared_bytes: What the tree added to `/dev/shm`, where loader workers pass batches. Files
            there have no owner to be told by; but of the trials that are open, one runs at a time.
    """

    def __init__(self, root_pid: int) -> None:
        self.shared_bytes = 0
        self._root_pid = root_pid

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the tree runs and no other trial does."""
        before = _shared_memory_used()
        yield
        self.shared_bytes = max(0, self.shared_bytes + _shared_memory_used() - before)

    def peak_bytes(self) -> int:
        """The most that the tree has held, as far as can be told; 0 where it is gone.

        The proportional set size (PSS) now, so that pages which forked processes share count
        once, and for each process what its resident size was larger at its peak. Where the system
        has no PSS (macOS), the unique set size.

        Source: https://docs.kernel.org/filesystems/proc.html (VmHWM, VmRSS, Pss).
        """
        total = 0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.uss) + _above_now(process.pid)
        return total

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._root_pid)
            return [root, *root.children(recursive=True)]
        except psutil.Error:
            return []


class OomWatch:
    """Tells whether the kernel has ended processes since it was made, since memory ran out.

    In a control group that counts this, those of the group count; else those of the machine.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.events), and oom_kill in
    /proc/vmstat.

    Args:
        root: Where `proc` and `sys` are found.
    """

    def __init__(self, root: Path = cgroup.ROOT) -> None:
        self._root = root
        self._before = self._count()

    def struck(self) -> bool:
        """Whether it has."""
        return self._count() > self._before

    def _count(self) -> int:
        counted = cgroup.oom_kills(self._root)
        if counted is not None:
            return counted
        try:
            lines = (self._root / "proc/vmstat").read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def memory_left_bytes() -> int:
    """What may still be taken: of the machine's memory, and within a container's limit."""
    free = int(psutil.virtual_memory().available)
    limited = cgroup.memory_left_bytes()
    return free if limited is None else min(free, limited)


def shared_memory_left_bytes() -> int | None:
    """What may still be taken of `/dev/shm`; None where there is none."""
    space = _shared_memory()
    return None if space is None else space.f_bavail * space.f_frsize


def shared_memory_bytes() -> int | None:
    """How much `/dev/shm` holds at most; None where there is none."""
    space = _shared_memory()
    return None if space is None else space.f_blocks * space.f_frsize


def _above_now(pid: int) -> int:
    """How much larger the resident memory of a process was at its peak than it is now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("VmHWM", "VmRSS")))
    kibibytes = [int(text.split()[0]) for text in fields.values()]
    return 1024 * (max(kibibytes) - min(kibibytes)) if kibibytes else 0


def _shared_memory_used() -> int:
    space = _shared_memory()
    return 0 if space is None else (space.f_blocks - space.f_bfree) * space.f_frsize


def _shared_memory() -> os.statvfs_result | None:
    try:
        return os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
