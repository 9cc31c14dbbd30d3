"""What else uses the cores: looked at while no trial runs, and waited for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

import psutil

from autotune.system.machine import affinity, capacity_cores, machine_cpu_s

# A machine is too busy to measure on when others use more cores than this, or than that share of
# those that may be used. Less than that is measured in spite of, and told.
_BUSY_CORES, _BUSY_SHARE = 0.5, 0.1
# It is quiet when they use less than this, or than that share, in so many looks in a row.
_QUIET_CORES, _QUIET_SHARE = 0.1, 0.02
_NUM_LOOKS, _LOOK_S = 2, 0.25
_LONGEST_WAIT_S = 15.0
# Fewer cores than this are not worth naming.
_NAMED_CORES = 0.05
_MAX_NAMED = 3
_MAX_COMMAND = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A process that is not ours and uses the cores."""

    pid: int
    command: str
    cores: float

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid}, {self.cores:.1f} cores)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What others use of the cores.

    Attributes:
        cores: Cores in use, stolen time included.
        capacity_cores: Cores that may be used.
        neighbours: Who uses them, the busiest first. Processes of other containers, and what a
            hypervisor takes, have no name here.
    """

    cores: float
    capacity_cores: float
    neighbours: tuple[Neighbour, ...]

    @property
    def is_quiet(self) -> bool:
        """Whether the machine is as good as idle."""
        return self.cores < max(_QUIET_CORES, _QUIET_SHARE * self.capacity_cores)

    @property
    def is_too_high(self) -> bool:
        """Whether nothing can be measured beside it."""
        return self.cores > max(_BUSY_CORES, _BUSY_SHARE * self.capacity_cores)

    def __str__(self) -> str:
        names = ", ".join(str(neighbour) for neighbour in self.neighbours)
        of = f"{self.cores:.1f} of {self.capacity_cores:g} cores are used by other processes"
        return f"{of}: {names}" if names else f"{of}, of which none is to be seen from here"


def look_at_load(duration_s: float = _LOOK_S) -> Load:
    """Watch for a while. Only where no trial runs: whatever runs is taken for a neighbour."""
    own = os.getpid()
    cores, capacity = affinity(), capacity_cores()
    before, busy_before_s, start_s = _cpu_by_process(), sum(machine_cpu_s(cores)), time.monotonic()
    time.sleep(duration_s)
    wall_s, busy_s, after = time.monotonic() - start_s, sum(machine_cpu_s(cores)), _cpu_by_process()
    used = {pid: (after[pid] - before.get(pid, 0.0)) / wall_s for pid in after if pid in before}
    neighbours = [
        Neighbour(pid=pid, command=_command(pid), cores=found)
        for pid, found in sorted(used.items(), key=lambda pair: -pair[1])
        if found > _NAMED_CORES and pid != own
    ]
    spare = len(cores) - capacity
    # Only the readings cost this process time between the two totals.
    others = (busy_s - busy_before_s) / wall_s - spare
    return Load(
        cores=max(0.0, others),
        capacity_cores=capacity,
        neighbours=tuple(neighbours[:_MAX_NAMED]),
    )


class QuietKeeper:
    """Waits for a quiet machine.

    Args:
        limit_s: Seconds that may be spent on waiting in the whole run.

    Attributes:
        waited_s: Seconds spent so far.
        last_load: What others used when the machine was last seen not to be quiet; None where it
            always was.
    """

    def __init__(self, limit_s: float) -> None:
        self.waited_s = 0.0
        self.last_load: Load | None = None
        self._limit_s = limit_s
        self._patience_s = _LONGEST_WAIT_S

    def wait(self) -> bool:
        """Wait until the machine is quiet, or for as long as seems worthwhile.

        Gives whether it is quiet. Patience is halved each time that it was in vain: what goes on
        for good is not waited for again and again.
        """
        start_s = time.monotonic()
        limit_s = min(self._patience_s, self._limit_s - self.waited_s)
        num_quiet = 0
        while True:
            load = look_at_load()
            num_quiet = num_quiet + 1 if load.is_quiet else 0
            if not load.is_quiet:
                self.last_load = load
            waited_s = time.monotonic() - start_s
            # A quiet look is followed by another, however little time is left.
            if num_quiet == _NUM_LOOKS or (waited_s > limit_s and not num_quiet):
                break
        self.waited_s += waited_s
        is_quiet = num_quiet == _NUM_LOOKS
        self._patience_s = _LONGEST_WAIT_S if is_quiet else self._patience_s / 2
        return is_quiet


def _cpu_by_process() -> dict[int, float]:
    found = {}
    for process in psutil.process_iter(["cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:
            found[process.pid] = times.user + times.system
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        text = " ".join(process.cmdline()) or process.name()
        text = "".join(character if character.isprintable() else " " for character in text)
        return text if len(text) <= _MAX_COMMAND else text[: _MAX_COMMAND - 1] + "…"
    return "a process"
