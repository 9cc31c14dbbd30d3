"""Trials stand still between two requests, their loader's workers included."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from autotune.blocks import BlockMode, BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.system.counters import process_cpu_s

from ..conftest import processes_of, wait_until

CONFIG = ThroughputConfig(batch_size=4)
TWO_RANKS = ThroughputConfig(batch_size=4, num_ranks=2, ranks_per_node=2)
WITH_WORKERS = ThroughputConfig(batch_size=4, num_workers=2)
# More batches than the workers have ready.
BLOCK = BlockRequest(min_s=0.1, multiple_of=20)
# An item that takes CPU time, so that a worker that went on would show.
BUSY_ITEM = "sum(range(20000))"


def tree_of(trial):
    root = psutil.Process(trial._origin.root_pid)
    return [root, *root.children(recursive=True)]


def are_stopped(processes):
    return all(process.status() == psutil.STATUS_STOPPED for process in processes)


def cpu_s(processes):
    return [process_cpu_s(process.pid) for process in processes]


def unchanged(used_s):
    """Being stopped takes a few microseconds."""
    return pytest.approx(used_s, abs=0.001)


@pytest.mark.parametrize("mode", [StartMode.FORK, StartMode.FRESH])
def test_trainer_and_workers_are_stopped_between_requests_and_go_on_or_end_at_the_next(
    script, start_runner, tmp_path, monkeypatch, mode
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    command = script(item=BUSY_ITEM)
    runner = start_runner(command)
    with runner.start(WITH_WORKERS, mode) as trial:
        for _ in range(3):
            tree = tree_of(trial)
            assert len(tree) == 3
            assert wait_until(lambda found=tree: are_stopped(found))
            used_s = cpu_s(tree)
            time.sleep(0.2)
            assert cpu_s(tree) == unchanged(used_s)
            (block,) = trial.measure(BLOCK, deadline_s=30).blocks
            assert block.num_steps >= 20
            after_s = cpu_s(tree)
            assert all(after > used for used, after in zip(used_s, after_s, strict=True))
        assert wait_until(lambda: are_stopped(tree))
    assert wait_until(lambda: not any(process.is_running() for process in tree))
    # What workers leave there.
    assert not list(temporary.glob("pymp-*"))
    runner.close()
    assert wait_until(lambda: not processes_of(command[1]))


def test_two_trials_are_open_at_once_and_measured_in_turn(script, start_runner):
    runner = start_runner(script(item=BUSY_ITEM))
    with (
        runner.start(WITH_WORKERS, StartMode.FORK) as first,
        runner.start(CONFIG, StartMode.FRESH) as second,
    ):
        trees = {trial: tree_of(trial) for trial in (first, second)}
        for _ in range(2):
            for trial, other in ((first, second), (second, first)):
                assert wait_until(lambda found=other: are_stopped(trees[found]))
                used_s = cpu_s(trees[other])
                (block,) = trial.measure(BLOCK, deadline_s=30).blocks
                assert block.num_steps >= 20
                # It stood still all the while.
                assert cpu_s(trees[other]) == unchanged(used_s)
        first.close()
        assert second.measure(BLOCK, deadline_s=30).blocks


@pytest.mark.alone
def test_time_in_which_a_trial_stands_still_does_not_count(light_script, start_runner):
    with start_runner(light_script()).start(CONFIG, StartMode.FORK) as trial:
        before_s = trial.active_s
        time.sleep(1.0)
        trial.measure(BlockRequest(min_s=0.1, settle_s=0.1), deadline_s=30)
        assert 0.2 <= trial.active_s - before_s < 1.0
        assert before_s - 0.5 < trial.start_up_s < before_s + 0.5


# Starts two ranks as torchrun does, each in a session of its own, and waits for them.
LAUNCHER = """
import os, subprocess, sys
ranks = [
    subprocess.Popen(
        [sys.executable, sys.argv[1]],
        env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
        start_new_session=True,
    )
    for rank in range(2)
]
sys.exit(max(rank.wait() for rank in ranks))
"""


def launcher_of(tmp_path, command):
    path = tmp_path / "launcher.py"
    path.write_text(LAUNCHER)
    return (sys.executable, str(path), command[1])


@pytest.mark.alone
def test_ranks_in_groups_of_their_own_are_stopped_counted_and_ended(
    light_script, start_runner, tmp_path, join
):
    burn = "end = time.process_time() + 0.005\nwhile time.process_time() < end: pass"
    command = light_script(before=join, step=burn, item="pass")
    runner = start_runner(launcher_of(tmp_path, command))
    with runner.start(TWO_RANKS, StartMode.FRESH) as trial:
        tree = tree_of(trial)
        assert len(tree) == 3
        trial.measure(BlockRequest(min_s=0.1, settle_s=0.1), deadline_s=30)
        # What launched them goes on: it tells other machines that this one is there.
        launcher, ranks = tree[:1], tree[1:]
        assert wait_until(lambda: are_stopped(ranks), 2.0)
        assert not are_stopped(launcher)
        (block,) = trial.measure(BlockRequest(min_s=0.5), deadline_s=30).blocks
        # Two cores' worth, or what there is of it.
        assert block.cpu_s > 0.9 * min(2.0, block.capacity_cores) * block.duration_s
        assert block.other_cpu_s < 0.5 * block.cpu_s
    assert wait_until(lambda: not any(process.is_running() for process in tree), 2.0)


def test_stopped_ranks_are_killed_when_the_coordinator_is(light_script, tmp_path, join):
    command = launcher_of(tmp_path, light_script(before=join))
    coordinator = tmp_path / "coordinator.py"
    coordinator.write_text(
        "import os, signal\n"
        "from autotune.ipc.channel import Listener\n"
        "from autotune.config import ThroughputConfig\n"
        "from autotune.measurement import StartMode\n"
        "from autotune.trials.process_groups import ProcessGroups\n"
        "from autotune.trials.runner import Runner\n"
        "groups, listener = ProcessGroups(), Listener().__enter__()\n"
        "groups.remove_at_end(listener.directory)\n"
        f"runner = Runner({command!r}, groups=groups, listener=listener, start_mode=None,\n"
        "    start_deadline_s=60.0)\n"
        f"trial = runner.start({TWO_RANKS!r}, StartMode.FRESH)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, str(coordinator)], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert wait_until(lambda: not processes_of(command[2]))


@pytest.mark.alone
def test_workers_fill_no_buffer_while_a_trial_stands_still(script, start_runner):
    # 10 ms a batch: in 1 s all 16 batches that may be ready would be.
    config = ThroughputConfig(batch_size=1, num_workers=1, prefetch_factor=16)
    runner = start_runner(script(item="time.sleep(0.01)", step="pass"))
    with runner.start(config, StartMode.FORK) as trial:
        trial.measure(BlockRequest(min_s=0.0, settle_s=0.3), deadline_s=30)
        time.sleep(1.0)
        # As fast as batches come: one at a time.
        (block,) = trial.measure(BlockRequest(min_s=0.0, multiple_of=8), deadline_s=30).blocks
        assert block.ready_change > -4
        assert block.wait_s > 4 * 0.01


def test_a_request_of_another_mode_finds_the_trial_stopped_too(script, start_runner):
    with start_runner(script()).start(WITH_WORKERS, StartMode.FORK) as trial:
        for mode in (BlockMode.COMPUTE, BlockMode.LOAD, BlockMode.TRAIN):
            request = BlockRequest(mode=mode, min_s=0.05)
            assert trial.measure(request, deadline_s=30).blocks
            assert wait_until(lambda: are_stopped(tree_of(trial)))
