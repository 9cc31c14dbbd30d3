"""What the machine and a trial's processes have used so far, read at the edges of blocks.

The training process reads them itself, between two blocks, so that they cover exactly the time
that is measured; the coordinator sleeps meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from autotune.system import cgroup
from autotune.system.energy import EnergyMeter
from autotune.system.gpu_meter import GpuMeter, GpuReading
from autotune.system.machine import affinity, capacity_cores, machine_cpu_s

_MEMORY_PRESSURE = Path("/proc/pressure/memory")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Seconds since some fixed start, and energy. See `blocks.Block` for what each means."""

    at_s: float
    tree_cpu_s: float
    own_cpu_s: float
    busy_s: float
    stolen_s: float
    throttled_s: float
    group_cpu_s: float | None
    pressure_s: float
    energy_uj: tuple[int, ...] | None
    suspended_s: float
    cores: frozenset[int]
    gpu: GpuReading | None = None


class CounterReader:
    """Reads the counters for the process tree that this process belongs to.

    Args:
        root_pid: The tree is this process and everything below it: the training process and its
            loader workers, or a launcher with several ranks.
    """

    def __init__(self, root_pid: int) -> None:
        self.capacity_cores = capacity_cores()
        self._cores = affinity()
        self._tree_cpu = TreeCpu(root_pid)
        self._energy = EnergyMeter()
        self._gpus = GpuMeter()

    def find_processes(self) -> None:
        """Look for processes of the tree, and for its GPUs; slow, so never close to a block."""
        self._tree_cpu.find_processes()
        self._gpus.find_devices()

    def read(self) -> Counters:
        """The counters now."""
        busy_s, stolen_s = machine_cpu_s(self._cores)
        return Counters(
            at_s=time.monotonic(),
            tree_cpu_s=self._tree_cpu.read(),
            own_cpu_s=time.process_time(),
            busy_s=busy_s,
            stolen_s=stolen_s,
            throttled_s=cgroup.throttled_s(),
            group_cpu_s=cgroup.cpu_used_s(),
            pressure_s=_memory_pressure_s(),
            energy_uj=self._energy.read(),
            suspended_s=_suspended_s(),
            cores=affinity(),
            gpu=self._gpus.read(),
        )

    def used_between(self, start: Counters, end: Counters) -> dict[str, Any]:
        """What was used between two readings, by the names of `Block`'s attributes."""
        cpu_s = end.tree_cpu_s - start.tree_cpu_s
        # Under a quota others may use the cores that are left without disturbing anybody.
        spare_s = (len(self._cores) - self.capacity_cores) * (end.at_s - start.at_s)
        others_s = [end.busy_s - start.busy_s - cpu_s - spare_s]
        if start.group_cpu_s is not None and end.group_cpu_s is not None:
            others_s.append(end.group_cpu_s - start.group_cpu_s - cpu_s)
        return {
            "capacity_cores": self.capacity_cores,
            "cpu_s": cpu_s,
            "own_cpu_s": end.own_cpu_s - start.own_cpu_s,
            # The counters tick independently: their difference may fall below zero.
            "other_cpu_s": max(0.0, *others_s),
            "stolen_s": end.stolen_s - start.stolen_s,
            "throttled_s": end.throttled_s - start.throttled_s,
            "pressure_s": end.pressure_s - start.pressure_s,
            "suspended_s": end.suspended_s - start.suspended_s,
            "cores_changed": start.cores != end.cores,
            "energy_j": self._energy.used_j(start.energy_uj, end.energy_uj),
            **self._gpus.used_between(start.gpu, end.gpu, self._tree_cpu.pids),
        }


class TreeCpu:
    """CPU seconds of the process tree below `root_pid`, of which this process is a part."""

    def __init__(self, root_pid: int) -> None:
        self._root_pid = root_pid
        self._pids: set[int] = set()
        self._children: set[int] = set()
        self._last_s: dict[int, float] = {}

    @property
    def pids(self) -> frozenset[int]:
        """The processes of the tree that are known."""
        return frozenset({*self._pids, os.getpid()})

    def find_processes(self) -> None:
        """Look for the tree's processes, which means going through all of the machine's."""
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._root_pid)
            processes = [root, *root.children(recursive=True)]
            self._pids = {process.pid for process in processes} - {os.getpid()}
            self._children |= {p.pid for p in processes if p.ppid() == os.getpid()}

    def read(self) -> float:
        """CPU seconds so far. Workers that an epoch started since the last look are seen too."""
        workers = {child.pid for child in multiprocessing.active_children() if child.pid}
        for pid in workers - self._pids:
            # A fork server's children are not this process's, and not reaped by it.
            with contextlib.suppress(psutil.Error):
                if psutil.Process(pid).ppid() == os.getpid():
                    self._children.add(pid)
        self._pids |= workers
        for pid in tuple(self._pids):
            try:
                self._last_s[pid] = process_cpu_s(pid)
            except (OSError, psutil.Error):
                self._pids.discard(pid)
                if pid in self._children:
                    # A child that has ended counts among the reaped ones below.
                    self._last_s.pop(pid, None)
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        own_s = time.process_time() + reaped.ru_utime + reaped.ru_stime
        return own_s + sum(self._last_s.values())


def process_cpu_s(pid: int) -> float:
    """CPU seconds of one process, its ended threads included.

    On Linux this asks the process's own clock, which takes half a microsecond and is exact, where
    /proc counts in hundredths of a second. Source: clock_getcpuclockid(3); the kernel's encoding
    of a process's clock is in include/linux/posix-timers_types.h (MAKE_PROCESS_CPUCLOCK).

    Raises:
        OSError: There is no such process.
        psutil.Error: The same, on other systems.
    """
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _suspended_s() -> float:
    """Seconds that the machine has slept since it was started; the monotonic clock stands then.

    Source: clock_gettime(2), CLOCK_BOOTTIME.
    """
    if sys.platform != "linux":
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _memory_pressure_s() -> float:
    """Seconds so far in which at least one process waited for memory; 0 where nobody counts.

    Source: https://docs.kernel.org/accounting/psi.html (total= is in microseconds).
    """
    try:
        text = _MEMORY_PRESSURE.read_text()
        return int(text.split("\n")[0].rpartition("total=")[2]) * 1e-6
    except (OSError, ValueError):
        return 0.0
