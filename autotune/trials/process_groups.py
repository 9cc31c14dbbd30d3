"""Process groups: known to a guard while they live, and ended whole."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Set
from pathlib import Path

import psutil

from autotune.system.memory import SHARED_MEMORY
from autotune.trials.watchdog import RESOURCE_TRACKER, TRACKER_DEADLINE_S

# Holds a mark in the environment of all processes that a run started.
RUN_VARIABLE = "AUTOTUNE_RUN"

_WATCHDOG = Path(__file__).with_name("watchdog.py")
# A killed process is gone within milliseconds unless it hangs in the kernel; a resource tracker a
# little later.
_END_DEADLINE_S = TRACKER_DEADLINE_S
# Printing stacks takes milliseconds, unless a process ignores the signal.
_ABORT_DEADLINE_S = 1.0
_TICK_S = 0.01


class ProcessGroups:
    """The groups that this coordinator started and has not ended.

    DataLoader workers look for their parent only every 5 s, so ending a trial means ending its
    whole group: workers left over would spoil the next measurement. A launcher may put what it
    starts into groups of their own (torchrun does so with each rank): these go with the launcher's.
    A daemon leaves its group and its parent: it is known by a mark in its environment.

    Resource trackers of multiprocessing are not killed with the others: they unlink what the others
    left, and then end by themselves.

    Attributes:
        environment: The mark; every process is to be started with it.
    """

    def __init__(self) -> None:
        mark = secrets.token_hex(8)
        self.environment = {RUN_VARIABLE: mark}
        self._live: dict[int, frozenset[int]] = {}
        self._began_at_s: dict[int, float] = {}
        self._ended_pids: set[int] = set()
        self._trackers: set[int] = set()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WATCHDOG)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._tell_guard(f"@{RUN_VARIABLE}={mark}")

    def add(self, group: int) -> None:
        """Take charge of a group, to be called by its leader's number."""
        self._live[group] = frozenset({group})
        self._began_at_s[group] = _since_boot_s()
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
        # A process that is stopped starts no other, which would be missed.
        _signal_groups(groups, signal.SIGSTOP)
        found = {*_members(groups), *(process.pid for process in _descendants(group))}
        trackers = set(filter(_is_tracker, found))
        self._trackers |= trackers
        self._ended_pids.update({group}, found)
        for pid in found - trackers:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in trackers:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        if not trackers:
            _signal_groups(groups, signal.SIGKILL)

    def abort(self, group: int) -> None:
        """Have the processes of a group print where they stand; they end with that.

        Python does so where it was started with `stacks.STACKS_AT_ABORT`. The caller ends the
        group in any case.
        """
        deadline_s = time.monotonic() + _ABORT_DEADLINE_S
        # One after another, so that they do not write into each other's lines; who waits for others
        # before these, since it would see them die.
        for pid in sorted(_members(self._live[group])):
            if _is_tracker(pid):
                continue
            with contextlib.suppress(OSError):
                # Nobody wants a dump of the memory of what is ended on purpose.
                resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
                os.kill(pid, signal.SIGABRT)
                os.kill(pid, signal.SIGCONT)
            while _runs(pid) and time.monotonic() < deadline_s:
                time.sleep(0.002)

    def forget(self, group: int) -> None:
        """Wait until a killed group is gone, with those that go with it, and drop it."""
        groups = self._live.pop(group)
        self._kill_strays(self._began_at_s.pop(group))
        deadline_s = time.monotonic() + _END_DEADLINE_S
        while time.monotonic() < deadline_s and (
            any(map(_is_alive, groups)) or any(map(_runs, self._trackers))
        ):
            time.sleep(0.002)
        _signal_groups(set(filter(_is_alive, groups)), signal.SIGKILL)
        for pid in filter(_is_tracker, self._trackers):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for number in groups:
            self._tell_guard(f"-{number}")
        for pid in self._ended_pids:
            _remove_shared_memory(pid)
        self._trackers.clear()
        self._ended_pids.clear()

    def _kill_strays(self, since_s: float) -> None:
        """Kill what was started since then and is in no group that still lives: daemons."""
        spared = frozenset().union(*self._live.values())
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                young = _started_at_s(pid) > since_s - _TICK_S
                if young and os.getpgid(pid) not in spared:
                    process = psutil.Process(pid)
                    if self.environment.items() <= process.environ().items():
                        if _is_tracker(pid):
                            self._trackers.add(pid)
                        else:
                            process.kill()

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


def groups_of_launchers(root: int, pids: Collection[int]) -> frozenset[int]:
    """Process groups that hold launchers and none of what these have launched.

    Args:
        root: What was started first.
        pids: What it has launched, or what others have that it launched.
    """
    launchers, launched = set(), set()
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):
            launched.add(os.getpgid(pid))
            above = [parent.pid for parent in psutil.Process(pid).parents()]
            if root in above:
                launchers |= {os.getpgid(parent) for parent in above[: above.index(root) + 1]}
    return frozenset(launchers - launched)


def _signal_groups(groups: Set[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _is_tracker(pid: int) -> bool:
    """Whether a process is a resource tracker of multiprocessing."""
    with contextlib.suppress(psutil.Error):
        return any(RESOURCE_TRACKER in part for part in psutil.Process(pid).cmdline())
    return False


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.time()


def _started_at_s(pid: int) -> float:
    """When a process was started, by `_since_boot_s`. Source: proc_pid_stat(5), starttime."""
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


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
