"""Trials that go on in the process of the one before, with other workers."""

from pathlib import Path

import psutil
import pytest
import yaml

from autotune.best_config import read_best_config
from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode

from ..commands import autotune_run, trials
from ..conftest import QUICK, wait_until

# A fork is not safe beside another thread.
THREAD = "import threading; threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()"
SETTLE = BlockRequest(num_blocks=1, min_s=0.1, settle_s=0.5)


def config_of(num_workers, **changes):
    values = {"batch_size": 4, "num_workers": num_workers, "num_threads": 1}
    return ThroughputConfig(**{**values, **changes})


def measured(runner, config):
    """Measure a configuration; gives the process that ran it, how, its workers and its block."""
    with runner.start(config, StartMode.FORK, may_swap=True) as trial:
        sample = trial.measure(SETTLE, deadline_s=30.0)
        root = psutil.Process(trial._origin.root_pid)
        workers = [child.pid for child in root.children(recursive=True)]
        assert trial.start_up_s is not None and sample.settling is not None
        return root.pid, trial.mode, workers, sample.blocks[0]


def test_workers_and_threads_change_in_a_running_process_and_batches_do_not(script, start_runner):
    command = script(before=THREAD, step="assert config.batch_size == len(batch)")
    runner = start_runner(command)
    first, mode, workers, _ = measured(runner, config_of(0))
    assert (mode, workers) == (StartMode.FRESH, [])
    assert "thread" in runner.fresh_reason
    found = [measured(runner, config_of(n, prefetch_factor=2)) for n in (2, 1)]
    assert [pid for pid, *_ in found] == [first, first]
    assert [mode for _, mode, *_ in found] == [StartMode.SWAP] * 2
    (_, _, two, block), (_, _, one, _) = found
    assert (len(two), len(one)) == (2, 1)
    assert not set(two) & set(one)
    assert block.num_samples == 4 * block.num_steps
    # A larger batch needs another process, and the one that waited is ended.
    other, mode, *_ = measured(runner, config_of(1, batch_size=8))
    assert other != first and mode is StartMode.FRESH
    assert wait_until(lambda: not psutil.pid_exists(first))
    runner.close()
    assert wait_until(lambda: not psutil.pid_exists(other))


def test_only_who_asks_for_it_gets_a_process_that_ran_before_without_a_failure(
    script, start_runner
):
    runner = start_runner(script(before=THREAD))
    measured(runner, config_of(0))
    assert runner.can_swap(config_of(2))
    with runner.start(config_of(1), StartMode.FRESH) as trial:
        assert trial.mode is StartMode.FRESH
    assert not runner.can_swap(config_of(2))
    with (
        pytest.raises(RuntimeError),
        runner.start(config_of(1), StartMode.FORK, may_swap=True) as trial,
    ):
        trial.measure(SETTLE, deadline_s=30.0)
        raise RuntimeError
    assert not runner.can_swap(config_of(2))


def test_workers_that_are_started_otherwise_need_another_process(script, start_runner):
    runner = start_runner(script(before=THREAD))
    measured(runner, config_of(2, prefetch_factor=2, multiprocessing_context="forkserver"))
    assert runner.can_swap(config_of(1, multiprocessing_context="forkserver"))
    assert not runner.can_swap(config_of(0))
    assert not runner.can_swap(config_of(2))


def test_memory_of_an_earlier_configuration_is_not_counted(script, start_runner):
    step = "held = bytearray(2**28) if config.num_workers == 0 and taken == 3 else None"
    runner = start_runner(script(before=THREAD, step=step))
    with runner.start(config_of(0), StartMode.FORK, may_swap=True) as trial:
        before = trial.measure(SETTLE, deadline_s=30.0).memory_bytes
    with runner.start(config_of(0, num_threads=2), StartMode.FORK, may_swap=True) as trial:
        assert trial.mode is StartMode.SWAP
        after = trial.measure(SETTLE, deadline_s=30.0).memory_bytes
    assert before - after > 2**27


@pytest.mark.long
def test_a_search_that_cannot_fork_starts_a_process_for_each_batch_size(script):
    # A worker nearly doubles the throughput, also where the machine has little time for either.
    command = script(before=THREAD, step="time.sleep(0.02)", item="time.sleep(0.005)")
    axes = {"batch_size": [4, 8], "num_workers": [0, 1], "prefetch_factor": [2]}
    axes |= {"num_threads": [1], "gc": ["default"]}
    changes = {"axes": axes, "sampler": "auto", "max_trials": 4, "confirm_s": 0.5}
    Path("quick.yaml").write_text(yaml.safe_dump({**QUICK, **changes, "command": list(command)}))
    done = autotune_run("--study", "quick.yaml")
    assert done.returncode == 0, done.stderr
    found = trials()
    brief = found.query("phase in ('search', 'explain')")
    assert "swap" in set(brief["start_mode"]), done.stdout
    # What decides ran in fresh processes, as training will.
    assert set(found.query("phase == 'confirm'")["start_mode"]) == {"fresh"}
    best = read_best_config(Path("best_config.yaml"))
    assert best.config.num_workers > 0, done.stdout
    assert not Path("epilogue").exists()
