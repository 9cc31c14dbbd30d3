import os

import pytest

from autotune import machine
from autotune.machine import this_machine, usable_cores


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A cgroup hierarchy in a directory, with this process in /outer/inner."""
    monkeypatch.setattr(machine, "_CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(machine, "_PROC_CGROUP", tmp_path / "proc_self_cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    this_machine.cache_clear()
    yield tmp_path
    this_machine.cache_clear()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_quota_above_decides(cgroup):
    write(cgroup / "proc_self_cgroup", "0::/outer/inner\n")
    write(cgroup / "outer/inner/cpu.max", "max 100000\n")
    write(cgroup / "outer/cpu.max", "150000 100000\n")
    write(cgroup / "outer/memory.max", f"{2**30}\n")
    assert usable_cores() == 2
    assert this_machine().usable_cores == 2
    assert this_machine().memory_bytes == 2**30
    write(cgroup / "outer/inner/cpu.max", "50000 100000\n")
    assert usable_cores() == 1


def test_quotas_of_cgroup_v1_count(cgroup):
    write(cgroup / "proc_self_cgroup", "4:cpu,cpuacct:/box\n2:memory:/box\n")
    write(cgroup / "cpu,cpuacct/box/cpu.cfs_quota_us", "300000\n")
    write(cgroup / "cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    assert usable_cores() == 3
    write(cgroup / "cpu,cpuacct/box/cpu.cfs_quota_us", "-1\n")
    assert usable_cores() == 8


def test_without_cgroups_affinity_decides(cgroup):
    assert usable_cores() == 8


def test_the_fingerprint_changes_with_what_matters_and_nothing_else():
    import dataclasses

    here = this_machine()
    assert dataclasses.replace(here, hostname="elsewhere").fingerprint == here.fingerprint
    assert dataclasses.replace(here, usable_cores=99).fingerprint != here.fingerprint
    assert dataclasses.replace(here, cpu="another").fingerprint != here.fingerprint
