"""What this process's control groups (Linux containers) allow, and what they have used.

Both versions are read, v1 and v2, each group and all above it. A container sees its own group as
the root, or under the host's path; both are looked at.

Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, cpu.stat, memory.max),
https://docs.kernel.org/scheduler/sched-bwc.html and
https://docs.kernel.org/admin-guide/cgroup-v1/cpuacct.html for version 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
# Version 1 says "no limit" with a number near 2**63.
_NO_LIMIT = 1 << 60


def cpu_quota_cores(root: Path = ROOT) -> float | None:
    """The tightest CPU quota above this process, in cores; None where there is none.

    Args:
        root: Where `proc` and `sys` are found.
    """
    quotas = [quota for path in _directories("cpu", root) if (quota := _quota(path)) is not None]
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """The tightest memory limit above this process; None where there is none."""
    limits = [
        limit
        for path in _directories("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _read_int(path / name)) is not None and limit < _NO_LIMIT
    ]
    return min(limits, default=None)


def throttled_s(root: Path = ROOT) -> float:
    """Seconds so far that quotas held these groups up, summed over cores and groups."""
    total_s = 0.0
    for path in _directories("cpu", root):
        if _quota(path) is not None:
            stat = _read_table(path / "cpu.stat")
            total_s += stat.get("throttled_usec", 0) * 1e-6 + stat.get("throttled_time", 0) * 1e-9
    return total_s


def cpu_used_s(root: Path = ROOT) -> float | None:
    """CPU seconds so far of the innermost group that has a quota; None where nobody counts them.

    Version 1 may count in another hierarchy, where this process can be in another group.
    """
    group = next((path for path in _directories("cpu", root) if _quota(path) is not None), None)
    if group is None:
        return None
    usage_us = _read_table(group / "cpu.stat").get("usage_usec")
    if usage_us is not None:
        return usage_us * 1e-6
    mount = root / "sys/fs/cgroup"
    for path in _directories("cpuacct", root):
        if path.relative_to(mount).parts[1:] == group.relative_to(mount).parts[1:]:
            usage_ns = _read_int(path / "cpuacct.usage")
            return None if usage_ns is None else usage_ns * 1e-9
    return None


def memory_left_bytes(root: Path = ROOT) -> int | None:
    """What may still be taken before the tightest limit is reached; None where there is none.

    Pages of files that have not been used for a while are given back when memory is wanted.
    """
    left = []
    for path in _directories("memory", root):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, usage = _read_int(path / limit_name), _read_int(path / usage_name)
            if limit is not None and usage is not None and limit < _NO_LIMIT:
                stat = _read_table(path / "memory.stat")
                idle = stat.get("total_inactive_file", stat.get("inactive_file", 0))
                left.append(limit - usage + idle)
    return min(left, default=None)


def oom_kills(root: Path = ROOT) -> int | None:
    """Processes of these groups that the kernel ended since memory ran out; None if uncounted."""
    tables = [
        _read_table(path / name)
        for path in _directories("memory", root)
        for name in ("memory.events", "memory.oom_control")
    ]
    return max((table["oom_kill"] for table in tables if "oom_kill" in table), default=None)


def _directories(controller: str, root: Path) -> Iterator[Path]:
    """The directories of one controller that hold this process, the innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, relative = line.split(":", 2)
        if not controllers:
            # Version 2, by itself or beside version 1.
            base = mount / "unified" if (mount / "unified").is_dir() else mount
        elif controller in controllers.split(","):
            base = next(
                (mount / name for name in (controllers, controller) if (mount / name).is_dir()),
                mount / controller,
            )
        else:
            continue
        directory = base / relative.lstrip("/")
        for path in (directory, *directory.parents):
            if path.is_relative_to(base) and path.is_dir():
                yield path


def _quota(directory: Path) -> float | None:
    """The quota of one group in cores, None where there is none."""
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


def _read_table(path: Path) -> dict[str, int]:
    """A file of lines "name number"."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
        return {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return {}
