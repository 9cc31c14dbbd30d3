"""Quotas and limits of control groups: from files as Linux lays them out, and one for real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.system import cgroup
from autotune.system.machine import capacity_cores, usable_cores

from ..conftest import wait_until

V1 = "4:cpu,cpuacct:/box\n2:memory:/box\n"
V2 = "0::/outer/inner\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture
def groups(tmp_path):
    """Writes /proc/self/cgroup, and files below /sys/fs/cgroup; gives the root of both."""

    def write(process, **files):
        contents = {"proc/self/cgroup": process}
        contents |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
        for name, text in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n" if not text.endswith("\n") else text)
        return tmp_path

    return write


def v1(quota, directory="cpu,cpuacct/box"):
    return {f"{directory}/cpu.cfs_quota_us": quota, f"{directory}/cpu.cfs_period_us": "100000"}


def test_without_groups_affinity_decides(tmp_path):
    assert capacity_cores(tmp_path) == usable_cores(tmp_path) == 8
    assert cgroup.cpu_quota_cores(tmp_path) is None
    assert cgroup.memory_limit_bytes(tmp_path) is None
    assert cgroup.throttled_s(tmp_path) == 0.0
    assert cgroup.cpu_used_s(tmp_path) is None


def test_a_quota_of_one_core_leaves_one_core(groups):
    assert usable_cores(groups(V2, **{"outer/inner/cpu.max": "100000 100000"})) == 1


def test_a_quota_of_one_core_of_version_1_leaves_one_core(groups):
    root = groups(V1, **v1("100000"))
    assert usable_cores(root) == 1
    assert capacity_cores(root) == 1.0


def test_a_fractional_quota_is_kept_and_its_cores_are_rounded_up(groups):
    root = groups(V2, **{"outer/inner/cpu.max": "150000 100000"})
    assert capacity_cores(root) == 1.5
    assert usable_cores(root) == 2


def test_less_than_a_core_is_still_one_usable_core(groups):
    root = groups(V2, **{"outer/inner/cpu.max": "20000 100000"})
    assert capacity_cores(root) == 0.2
    assert usable_cores(root) == 1


def test_the_tightest_quota_above_decides(groups):
    root = groups(V2, **{"outer/inner/cpu.max": "300000 100000", "outer/cpu.max": "150000 100000"})
    assert capacity_cores(root) == 1.5
    groups(V2, **{"outer/inner/cpu.max": "max 100000"})
    assert capacity_cores(root) == 1.5
    groups(V2, **{"outer/inner/cpu.max": "50000 100000"})
    assert capacity_cores(root) == 0.5
    groups(V2, **{"outer/cpu.max": "max 100000", "outer/inner/cpu.max": "max 100000"})
    assert capacity_cores(root) == 8


def test_a_quota_above_the_affinity_changes_nothing(groups):
    assert capacity_cores(groups(V2, **{"outer/cpu.max": "6400000 100000"})) == 8


def test_no_quota_of_version_1_is_minus_one(groups):
    root = groups(V1, **v1("-1"))
    assert cgroup.cpu_quota_cores(root) is None
    assert capacity_cores(root) == 8


def test_controllers_mounted_one_by_one_or_by_their_full_name_are_found(groups):
    assert capacity_cores(groups("1:cpu:/box\n", **v1("300000", "cpu/box"))) == 3
    # Mounted together, but reached by the link that distributions make.
    assert capacity_cores(groups(V1, **v1("200000", "cpu/box"))) == 2


def test_a_container_sees_its_own_group_as_the_root(groups):
    root = groups("4:cpu,cpuacct:/docker/0123\n", **v1("150000", "cpu,cpuacct"))
    assert capacity_cores(root) == 1.5
    root = groups("0::/../../kubepods/pod1\n", **{"cpu.max": "250000 100000"})
    assert cgroup.cpu_quota_cores(root) is not None


def test_in_a_hybrid_both_versions_count(groups):
    root = groups(
        f"{V1}0::/unit\n",
        **v1("300000"),
        **{"unified/unit/cgroup.procs": "", "memory/box/memory.limit_in_bytes": f"{2**30}"},
    )
    assert capacity_cores(root) == 3
    assert cgroup.memory_limit_bytes(root) == 2**30
    groups(f"{V1}0::/unit\n", **{"unified/unit/cpu.max": "200000 100000"})
    assert capacity_cores(root) == 2


def test_the_tightest_memory_limit_decides(groups):
    root = groups(V2, **{"outer/memory.max": f"{2**30}", "outer/inner/memory.max": "max"})
    assert cgroup.memory_limit_bytes(root) == 2**30
    groups(V2, **{"outer/inner/memory.max": f"{2**29}"})
    assert cgroup.memory_limit_bytes(root) == 2**29


def test_a_huge_memory_limit_of_version_1_is_none(groups):
    root = groups(V1, **{"memory/box/memory.limit_in_bytes": "9223372036854771712"})
    assert cgroup.memory_limit_bytes(root) is None


def test_throttling_and_use_are_read_from_version_2(groups):
    stat = "usage_usec 2500000\nuser_usec 2000000\nnr_throttled 3\nthrottled_usec 750000\n"
    root = groups(V2, **{"outer/inner/cpu.max": "50000 100000", "outer/inner/cpu.stat": stat})
    assert cgroup.throttled_s(root) == pytest.approx(0.75)
    assert cgroup.cpu_used_s(root) == pytest.approx(2.5)
    groups(V2, **{"outer/inner/cpu.max": "max 100000"})
    assert cgroup.throttled_s(root) == 0.0
    assert cgroup.cpu_used_s(root) is None


def test_throttling_of_every_group_above_counts(groups):
    files = {
        f"{name}/{file}": text
        for name in ("outer", "outer/inner")
        for file, text in (("cpu.max", "50000 100000"), ("cpu.stat", "throttled_usec 500000\n"))
    }
    assert cgroup.throttled_s(groups(V2, **files)) == pytest.approx(1.0)


def test_throttling_and_use_are_read_from_version_1(groups):
    box = "cpu,cpuacct/box"
    stat = "nr_periods 9\nnr_throttled 3\nthrottled_time 750000000\n"
    root = groups(
        V1, **v1("50000"), **{f"{box}/cpu.stat": stat, f"{box}/cpuacct.usage": "2500000000"}
    )
    assert cgroup.throttled_s(root) == pytest.approx(0.75)
    assert cgroup.cpu_used_s(root) == pytest.approx(2.5)


def test_use_of_another_group_than_that_with_the_quota_is_not_taken_for_its_own(groups):
    # Controllers mounted one by one, and the process put into a group of one of them only.
    process = "2:cpuacct:/\n1:cpu:/box\n"
    root = groups(process, **v1("50000", "cpu/box"), **{"cpuacct/cpuacct.usage": "2500000000"})
    assert cgroup.cpu_used_s(root) is None


def test_use_is_of_the_innermost_group_that_has_a_quota(groups):
    files = {
        "outer/cpu.max": "50000 100000",
        "outer/cpu.stat": "usage_usec 9000000\n",
        "outer/inner/cpu.max": "max 100000",
        "outer/inner/cpu.stat": "usage_usec 1000000\n",
    }
    assert cgroup.cpu_used_s(groups(V2, **files)) == pytest.approx(9.0)


def test_what_is_left_of_memory_is_the_least_that_a_group_above_leaves(groups):
    files = {
        "outer/memory.max": "1000",
        "outer/memory.current": "800",
        "outer/memory.stat": "anon 500\ninactive_file 250\n",
        "outer/inner/memory.max": "max",
        "outer/inner/memory.current": "10",
    }
    # Idle pages of files are given back.
    assert cgroup.memory_left_bytes(groups(V2, **files)) == 450
    assert cgroup.memory_limit_bytes(groups(V2, **files)) == 1000


def test_what_is_left_of_memory_in_version_1(groups):
    files = {
        "memory/box/memory.limit_in_bytes": "1000",
        "memory/box/memory.usage_in_bytes": "800",
        "memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
    }
    assert cgroup.memory_left_bytes(groups(V1, **files)) == 300
    unlimited = {"memory/box/memory.limit_in_bytes": str(2**63 - 4096)}
    assert cgroup.memory_left_bytes(groups(V1, **unlimited)) is None


def test_files_that_make_no_sense_are_no_limits(groups):
    root = groups(
        f"{V1}{V2}",
        **v1("soon"),
        **{
            "cpu.max": "",
            "cpu,cpuacct/box/cpu.stat": "a b c\n",
            "memory/box/memory.limit_in_bytes": "?",
        },
    )
    assert capacity_cores(root) == 8
    assert cgroup.memory_limit_bytes(root) is None
    assert cgroup.throttled_s(root) == 0.0


# Two processes that would keep two cores busy, and what the counters make of them.
BURN = """
import json, multiprocessing, os, time
from autotune.system.counters import CounterReader
from autotune.system.machine import capacity_cores, usable_cores

def burn():
    while True:
        pass

if __name__ == "__main__":
    workers = [multiprocessing.Process(target=burn, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    reader = CounterReader(os.getpid())
    reader.find_processes()
    start = reader.read()
    time.sleep(1.0)
    end = reader.read()
    print(json.dumps({
        **reader.used_between(start, end),
        "wall_s": end.at_s - start.at_s,
        "usable_cores": usable_cores(),
    }), flush=True)
    for worker in workers:
        worker.kill()
        worker.join()
"""


@pytest.fixture
def one_core_group():
    """A control group with a quota of one core, by its file that takes processes."""
    mount = Path("/sys/fs/cgroup")
    version_1 = (mount / "cpu").is_dir()
    directory = (mount / "cpu" if version_1 else mount) / f"autotune-test-{os.getpid()}"
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if version_1:
            (directory / "cpu.cfs_period_us").write_text("100000")
            (directory / "cpu.cfs_quota_us").write_text("100000")
        elif (directory / "cpu.max").exists():
            (directory / "cpu.max").write_text("100000 100000")
        else:
            pytest.skip("control groups here have no cpu controller")
        yield directory / "cgroup.procs"
    finally:
        # A group with processes in it cannot be removed.
        for pid in (directory / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        assert wait_until(lambda: not (directory / "cgroup.procs").read_text(), 5.0)
        directory.rmdir()


@pytest.mark.alone
def test_a_process_in_a_group_of_one_core_sees_one_core_and_uses_it_up(one_core_group, tmp_path):
    script = tmp_path / "burn.py"
    script.write_text(BURN)
    line = f'echo $$ > "{one_core_group}" && exec "{sys.executable}" "{script}"'
    done = subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["usable_cores"] == 1
    assert found["capacity_cores"] == 1.0
    # Two processes want two cores and get one: all of it, not half of two.
    utilisation = found["cpu_s"] / (found["wall_s"] * found["capacity_cores"])
    assert 0.75 < utilisation < 1.25
    # The quota held them up, unless other processes did.
    assert found["throttled_s"] + found["other_cpu_s"] > 0.1
