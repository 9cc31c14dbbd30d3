"""Process groups: known to a guard while they live, and ended whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Set
from pathlib import Path

import psutil

from autotune.trials.memory import SHARED_MEMORY

_GUARD = Path(__file__).with_name("guard.py")
# A killed process is gone within milliseconds unless it hangs in the kernel.
_END_DEADLINE_S = 2.0


class ProcessGroups:
    """The groups that this coordinator started and has not ended.

    DataLoader workers look for their parent only every 5 s, so ending a trial means ending its
    whole group: workers left over would spoil the next measurement. A launcher may put what it
    starts into groups of their own (torchrun does so with each rank): these go with the launcher's.
    """

    def __init__(self) -> None:
        self._live: dict[int, frozenset[int]] = {}
        self._ended_pids: set[int] = set()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, group: int) -> None:
        """Take charge of a group, to be called by its leader's number."""
        self._live[group] = frozenset({group})
        self._tell_guard(f"+{group}")

    def add_descendants(self, group: int) -> frozenset[int]:
        """Take charge of the groups of all that descends from a group's leader; gives all."""
        found = set(self._live[group])
        for process in _descendants(group):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                found.add(os.getpgid(process.pid))
        for other in found - self._live[group]:
            self._tell_guard(f"+{other}")
        self._live[group] = frozenset(found)
        return self._live[group]

    def remove_at_end(self, directory: Path) -> None:
        """Have a directory removed even if this process is killed."""
        self._tell_guard(f"={directory}")

    def end(self, group: int) -> None:
        """Kill a group, and those of what descends from its leader.

        The caller reaps the leader, then calls `forget`.
        """
        groups = self._live[group]
        self._ended_pids.update((group, *_members(groups)))
        for process in _descendants(group):
            self._ended_pids.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.kill()
        for number in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(number, signal.SIGKILL)

    def forget(self, group: int) -> None:
        """Wait until a killed group is gone, with those that go with it, and drop it."""
        deadline_s = time.monotonic() + _END_DEADLINE_S
        groups = self._live.pop(group)
        while any(map(_is_alive, groups)) and time.monotonic() < deadline_s:
            time.sleep(0.002)
        for number in groups:
            self._tell_guard(f"-{number}")
        for pid in self._ended_pids:
            _remove_shared_memory(pid)
        self._ended_pids.clear()

    def close(self) -> None:
        """Kill all groups that are left, and the guard."""
        for group in tuple(self._live):
            self.end(group)
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
        self._guard.wait()

    def _tell_guard(self, line: str) -> None:
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(f"{line}\n".encode())
                self._guard.stdin.flush()


def _is_alive(group: int) -> bool:
    """Whether a group has a member that is no zombie."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return bool(_members({group}))


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _members(groups: Set[int]) -> list[int]:
    """The processes of some groups that are no zombies."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) in groups and process.info["status"] != "zombie":
                found.append(process.pid)
    return found


def _remove_shared_memory(pid: int) -> None:
    """Remove what a killed process left in /dev/shm.

    A loader worker that is killed between making a segment and unlinking it leaves the segment.
    Source: torch's names for them, torch_PID_… (torch/csrc/StorageSharing, aten MapAllocator).
    """
    for segment in SHARED_MEMORY.glob(f"torch_{pid}_*"):
        with contextlib.suppress(OSError):
            segment.unlink()
