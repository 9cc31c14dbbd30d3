"""Process groups: known to a guard while they live, and ended whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

_GUARD = Path(__file__).with_name("guard.py")
_SHARED_MEMORY = Path("/dev/shm")
# A killed process is gone within milliseconds unless it hangs in the kernel.
_END_DEADLINE_S = 2.0


class ProcessGroups:
    """The groups that this coordinator started and has not ended.

    DataLoader workers look for their parent only every 5 s, so ending a trial means ending its
    whole group: workers left over would spoil the next measurement.
    """

    def __init__(self) -> None:
        self._live: set[int] = set()
        self._ended_pids: set[int] = set()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, group: int) -> None:
        """Take charge of a group."""
        self._live.add(group)
        self._tell_guard(f"+{group}")

    def remove_at_end(self, directory: Path) -> None:
        """Have a directory removed even if this process is killed."""
        self._tell_guard(f"={directory}")

    def end(self, group: int) -> None:
        """Kill a group and what descends from its leader in groups of its own.

        The caller reaps the leader, then calls `forget`.
        """
        self._ended_pids.update((group, *_members(group)))
        descendants: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            descendants = psutil.Process(group).children(recursive=True)
        for process in descendants:
            self._ended_pids.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)

    def forget(self, group: int) -> None:
        """Wait until a killed group is gone, and drop it."""
        deadline_s = time.monotonic() + _END_DEADLINE_S
        while _is_alive(group) and time.monotonic() < deadline_s:
            time.sleep(0.002)
        self._live.discard(group)
        self._tell_guard(f"-{group}")
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
    return bool(_members(group))


def _members(group: int) -> list[int]:
    """The processes of a group that are no zombies."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == group and process.info["status"] != "zombie":
                found.append(process.pid)
    return found


def _remove_shared_memory(pid: int) -> None:
    """Remove what a killed process left in /dev/shm.

    A loader worker that is killed between making a segment and unlinking it leaves the segment.
    Source: torch's names for them, torch_PID_… (torch/csrc/StorageSharing, aten MapAllocator).
    """
    for segment in _SHARED_MEMORY.glob(f"torch_{pid}_*"):
        with contextlib.suppress(OSError):
            segment.unlink()
