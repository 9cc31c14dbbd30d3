"""Energy that the machine has used, where it counts that and lets this process read it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from autotune.system import cgroup

_MICRO = 1e-6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Domain:
    counter: Path
    range_uj: int


class EnergyMeter:
    """Reads the energy counters of the processor packages and of the memory beside them.

    They count what the whole machine uses, its idle power and its other processes included.
    Virtual machines have none, and since Linux 5.10 root alone may read them by default.

    Source: https://docs.kernel.org/power/powercap/powercap.html

    Args:
        root: Where `sys` is found.
    """

    def __init__(self, root: Path = cgroup.ROOT) -> None:
        zones = sorted(root.glob("sys/class/powercap/intel-rapl:*"))
        self._domains = tuple(domain for zone in zones if (domain := _domain(zone)) is not None)

    def read(self) -> tuple[int, ...] | None:
        """Microjoules so far, counter by counter; None where there is none that can be read."""
        try:
            found = tuple(int(domain.counter.read_text()) for domain in self._domains)
        except (OSError, ValueError):
            return None
        return found or None

    def used_j(self, start: tuple[int, ...] | None, end: tuple[int, ...] | None) -> float | None:
        """Joules between two readings, less than a counter's whole range apart."""
        if start is None or end is None:
            return None
        # A counter that has reached the end of its range begins again at zero.
        return _MICRO * sum(
            (after - before) % domain.range_uj
            for before, after, domain in zip(start, end, self._domains, strict=True)
        )


def _domain(zone: Path) -> _Domain | None:
    """A package or its memory. The cores are a part of their package, and `psys` is all of it."""
    try:
        name = (zone / "name").read_text().strip()
        if not name.startswith("package-") and name != "dram":
            return None
        counter = zone / "energy_uj"
        int(counter.read_text())
        return _Domain(counter=counter, range_uj=int((zone / "max_energy_range_uj").read_text()))
    except (OSError, ValueError):
        return None
