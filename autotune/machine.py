"""What this machine offers a training run: usable cores, memory, and a fingerprint."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import platform
from pathlib import Path

import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROC_CGROUP = Path("/proc/self/cgroup")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The facts that decide whether settings tuned on one machine hold on another.

    Attributes:
        cpu: Model name of the processor.
        usable_cores: Cores that this process may use (affinity and cgroup quotas applied).
        memory_bytes: Physical memory, or the cgroup's limit where that is lower.
        system: Operating system and architecture.
        hostname: For people; not part of the fingerprint.
    """

    cpu: str
    usable_cores: int
    memory_bytes: int
    system: str
    hostname: str

    @property
    def fingerprint(self) -> str:
        """Short digest of what matters for throughput. Memory counts in whole GiB."""
        gib = round(self.memory_bytes / 2**30)
        facts = f"{self.cpu}|{self.usable_cores}|{gib}|{self.system}"
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        cores = f"{self.usable_cores} usable core{'s' if self.usable_cores > 1 else ''}"
        return f"{self.cpu}, {cores}, {self.memory_bytes / 2**30:.0f} GiB, {self.system}"


@functools.cache
def this_machine() -> Machine:
    """The machine that this process runs on."""
    memory = psutil.virtual_memory().total
    limits = [_read_int(directory / "memory.max") for directory in _cgroup_directories()]
    return Machine(
        cpu=_cpu_model(),
        usable_cores=usable_cores(),
        memory_bytes=min([memory, *(limit for limit in limits if limit)]),
        system=f"{platform.system()} {platform.machine()}",
        hostname=platform.node(),
    )


def usable_cores() -> int:
    """Whole cores that this process can keep busy: affinity, and the quota of every cgroup above.

    A quota of 1.5 cores counts as 2: two threads can run, though not all the time.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and
    https://docs.kernel.org/scheduler/sched-bwc.html (cgroup v1: cpu.cfs_quota_us).
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = [quota for path in _cgroup_directories() if (quota := _cpu_quota(path))]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _cgroup_directories() -> list[Path]:
    """This process's cgroup directories (v2, and v1's cpu and memory) and all above them."""
    try:
        lines = _PROC_CGROUP.read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, relative = line.split(":", 2)
        wanted = [name for name in controllers.split(",") if name in ("cpu", "memory")]
        roots = [_CGROUP_ROOT / controllers] if wanted else []
        for root in roots if controllers else [_CGROUP_ROOT]:
            directory = root / relative.lstrip("/")
            found += [directory, *(p for p in directory.parents if p.is_relative_to(root))]
    return [directory for directory in found if directory.is_dir()]


def _cpu_quota(directory: Path) -> float | None:
    """The quota of one cgroup in cores, None where there is none."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        quota_us = _read_int(directory / "cpu.cfs_quota_us")
        period_us = _read_int(directory / "cpu.cfs_period_us")
        return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
