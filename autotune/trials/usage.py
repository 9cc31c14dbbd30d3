"""CPU time and memory of a process tree, and what the rest of the machine was doing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

import psutil

from autotune.measurement import Usage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Counters at one moment, in seconds since some fixed start."""

    at_s: float
    tree_cpu_s: float
    machine_cpu_s: float


class UsageMeter:
    """Reads the counters of the process tree below `root_pid`, at the edges of blocks only.

    A process that has ended since is counted with its last reading.
    """

    def __init__(self, root_pid: int, usable_cores: int) -> None:
        self._root_pid = root_pid
        # Under a quota others may use the cores that are left without disturbing anybody.
        self._num_spare_cores = len(_affinity()) - usable_cores
        self._cpu_s: dict[tuple[int, float], float] = {}

    def read(self) -> Reading:
        """The counters now."""
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                key = (process.pid, process.create_time())
                self._cpu_s[key] = times.user + times.system
        return Reading(
            at_s=time.monotonic(),
            tree_cpu_s=sum(self._cpu_s.values()),
            machine_cpu_s=_machine_cpu_s(),
        )

    def usage_since(self, start: Reading) -> Usage:
        """What was used between `start` and now."""
        end = self.read()
        tree_cpu_s = end.tree_cpu_s - start.tree_cpu_s
        wall_s = end.at_s - start.at_s
        spare_s = self._num_spare_cores * wall_s
        other_cpu_s = end.machine_cpu_s - start.machine_cpu_s - tree_cpu_s - spare_s
        return Usage(
            wall_s=wall_s,
            cpu_s=tree_cpu_s,
            # The counters tick independently: their difference may fall below zero.
            other_cpu_s=max(0.0, other_cpu_s),
            memory_bytes=self._memory_bytes(),
        )

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._root_pid)
            return [root, *root.children(recursive=True)]
        except psutil.Error:
            return []

    def _memory_bytes(self) -> int:
        """PSS summed over the tree: pages that forked processes share count once."""
        total = 0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                total += getattr(process.memory_full_info(), "pss", 0)
        return total


def _affinity() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _machine_cpu_s() -> float:
    """Seconds that the cores which this process may run on were busy, or taken by a hypervisor."""
    per_core = psutil.cpu_times(percpu=True)
    idle_fields = ("idle", "iowait", "guest", "guest_nice")  # guest is part of user already
    return sum(
        float(value)
        for core in _affinity()
        if core < len(per_core)
        for name, value in per_core[core]._asdict().items()
        if name not in idle_fields
    )
