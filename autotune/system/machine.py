"""What this machine offers a training run: usable cores, memory, GPUs, and a fingerprint."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import platform
import re
import sys
from pathlib import Path

import psutil

from autotune.system import cgroup
from autotune.system.gpus import Gpu, find_gpus, summary

# Of the names of processors and GPUs, what tells nothing apart.
_COMMON_WORDS = frozenset(
    {"amd", "intel", "nvidia", "r", "tm", "cpu", "core", "processor", "geforce"}
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The facts that decide whether settings tuned on one machine hold on another.

    Attributes:
        cpu: Model name of the processor.
        usable_cores: Cores that this process may use (affinity and cgroup quotas applied).
        memory_bytes: Physical memory, or the cgroup's limit where that is lower.
        system: Operating system and architecture.
        hostname: For people; not part of the fingerprint.
        gpus: The NVIDIA GPUs that this process was given (see `gpus.find_gpus`).
        gpu_driver: The version of their driver; None without any.
    """

    cpu: str
    usable_cores: int
    memory_bytes: int
    system: str
    hostname: str
    gpus: tuple[Gpu, ...] = ()
    gpu_driver: str | None = None

    @property
    def fingerprint(self) -> str:
        """Short digest of what matters for throughput. Memory counts in whole GiB."""
        gib = round(self.memory_bytes / 2**30)
        facts = f"{self.cpu}|{self.usable_cores}|{gib}|{self.system}"
        if self.gpus:
            facts += f"|{self.gpu_driver}"
        for gpu in self.gpus:
            facts += f"|{gpu.name}|{gpu.memory_gib}|{gpu.mig_profile}"
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    @property
    def kind(self) -> str:
        """What machines that are alike have in common, as part of a name: epyc-2c-24g-3f2a1b."""
        words = re.findall(
            r"[a-z0-9]+", self.gpus[0].name.lower() if self.gpus else self.cpu.lower()
        )
        known = [word for word in words if word not in _COMMON_WORDS][:2]
        gib = round(self.memory_bytes / 2**30)
        parts = ("-".join(known) or "cpu", f"{self.usable_cores}c", f"{gib}g")
        return "-".join((*parts, self.fingerprint[:6]))

    def __str__(self) -> str:
        cores = f"{self.usable_cores} usable core{'s' if self.usable_cores > 1 else ''}"
        gpus = f", {summary(self.gpus)}" if self.gpus else ""
        return f"{self.cpu}, {cores}, {self.memory_bytes / 2**30:.0f} GiB, {self.system}{gpus}"


@functools.cache
def this_machine() -> Machine:
    """The machine that this process runs on."""
    memory = psutil.virtual_memory().total
    found = find_gpus()
    return Machine(
        cpu=_cpu_model(),
        usable_cores=usable_cores(),
        memory_bytes=min(memory, cgroup.memory_limit_bytes() or memory),
        system=f"{platform.system()} {platform.machine()}",
        hostname=platform.node(),
        gpus=found.gpus,
        gpu_driver=found.driver,
    )


def affinity() -> frozenset[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def capacity_cores(root: Path = cgroup.ROOT) -> float:
    """Cores that this process can keep busy: affinity, and the tightest cgroup quota above it.

    Args:
        root: Where `proc` and `sys` are found.
    """
    cores = len(affinity())
    return min(cores, cgroup.cpu_quota_cores(root) or cores)


def usable_cores(root: Path = cgroup.ROOT) -> int:
    """The same in whole cores: with a quota of 1.5, two threads run, though not all the time."""
    return max(1, math.ceil(capacity_cores(root)))


def machine_cpu_s(cores: frozenset[int], root: Path = cgroup.ROOT) -> tuple[float, float]:
    """Seconds that some cores were busy, and seconds that a hypervisor took from them.

    In a container whose own `/proc/stat` numbers the cores anew, all that it lists are counted.

    Args:
        cores: Numbers of the cores.
        root: Where `proc` is found.
    """
    found = _cpu_seconds(root)
    mine = [found[core] for core in cores] if found.keys() >= cores else list(found.values())
    return sum(busy_s for busy_s, _ in mine), sum(stolen_s for _, stolen_s in mine)


def _cpu_seconds(root: Path) -> dict[int, tuple[float, float]]:
    """Busy and stolen seconds of each core that is online, by its number.

    Source: proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal, and guest times
    that are part of user and nice; in ticks.
    """
    if sys.platform != "linux":
        times = psutil.cpu_times(percpu=True)
        return {core: (sum(time) - time.idle, 0.0) for core, time in enumerate(times)}
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    found = {}
    for line in (root / "proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, values)
            busy = user + nice + system + irq + softirq
            found[int(name[3:])] = (busy * tick_s, steal * tick_s)
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
