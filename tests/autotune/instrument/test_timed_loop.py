"""What a trial's loop times: blocks in each mode, settling, and the ends of epochs.

Loaders and steps sleep, so that their true speeds are known.
"""

import sys
import time

import pytest

from autotune.blocks import BlockMode, BlockRequest, Interference
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode, summarise
from autotune.system.machine import affinity, capacity_cores
from autotune.trials.trial import TrialFailedError

pytestmark = pytest.mark.alone

CONFIG = ThroughputConfig(batch_size=4)
SETTLE = BlockRequest(num_blocks=0, min_s=0.1, settle_s=1.0)


def test_blocks_are_multiples_and_come_without_a_pause(light_script, start_runner):
    with start_runner(light_script()).start(CONFIG, StartMode.FORK) as trial:
        request = BlockRequest(num_blocks=3, min_s=0.01, multiple_of=7)
        sample = trial.measure(request, deadline_s=30)
    assert len(sample.blocks) == 3
    assert all(block.num_steps % 7 == 0 for block in sample.blocks)
    assert all(block.duration_s >= 0.01 for block in sample.blocks)
    assert all(block.capacity_cores == capacity_cores() for block in sample.blocks)
    assert sample.settling is None


def test_a_block_that_lasts_too_long_is_cut_between_multiples(light_script, start_runner):
    runner = start_runner(light_script(step="time.sleep(0.05)", item="pass"))
    with runner.start(CONFIG, StartMode.FORK) as trial:
        request = BlockRequest(min_s=0.1, multiple_of=100, cut_s=0.2)
        (block,) = trial.measure(request, deadline_s=30).blocks
        assert 0.2 <= block.duration_s < 2
        assert 1 <= block.num_steps <= 4
        # It is never cut below its least duration.
        request = BlockRequest(min_s=0.4, multiple_of=100, cut_s=0.2)
        (block,) = trial.measure(request, deadline_s=30).blocks
        assert block.duration_s >= 0.4


def test_waiting_for_data_is_told_from_computing(light_script, start_runner):
    runner = start_runner(light_script(item="time.sleep(0.002)", step="time.sleep(0.0001)"))
    with runner.start(CONFIG, StartMode.FORK) as trial:
        trial.measure(SETTLE, deadline_s=30)
        found = summarise([trial.measure(BlockRequest(min_s=0.2), deadline_s=30)], CONFIG)
    assert found.data_wait_share > 0.8


def test_settling_without_blocks_tells_what_it_took(light_script, start_runner):
    step = "time.sleep(0.3 if taken == 0 else 0.01)"
    with start_runner(light_script(step=step)).start(CONFIG, StartMode.FORK) as trial:
        sample = trial.measure(SETTLE, deadline_s=30)
    settling = sample.settling
    assert sample.blocks == ()
    assert 0.3 < settling.duration_s < 5
    assert settling.num_steps > 2
    assert settling.settled
    assert settling.num_discarded == 0
    assert 0.01 <= settling.step_s < 0.1
    assert trial.start_up_s is not None


def test_a_loop_that_keeps_getting_faster_has_not_settled(light_script, start_runner):
    step = "time.sleep(0.05 * 0.85 ** taken)"
    with start_runner(light_script(step=step)).start(CONFIG, StartMode.FORK) as trial:
        request = BlockRequest(num_blocks=0, min_s=0.1, settle_s=0.22)
        settling = trial.measure(request, deadline_s=30).settling
        assert not settling.settled
        assert trial.measure(SETTLE, deadline_s=30).settling.settled


@pytest.mark.parametrize(("step_s", "least", "most"), [(0.005, 3, 20), (0.2, 1, 1), (0.6, 0, 0)])
def test_steps_after_a_pause_are_not_counted_unless_they_are_long(
    light_script, start_runner, step_s, least, most
):
    step = f"print('step', flush=True); time.sleep({step_s})"
    with start_runner(light_script(step=step)).start(CONFIG, StartMode.FORK) as trial:
        trial.measure(BlockRequest(num_blocks=0, min_s=0.1, settle_s=0.1), deadline_s=30)
        before = trial._origin.output.read_text().count("step\n")
        (block,) = trial.measure(BlockRequest(min_s=0.0), deadline_s=30).blocks
        after = trial._origin.output.read_text().count("step\n")
    assert block.num_steps == 1
    # Of the step that ends a request, the next request sees the end.
    assert least <= after - before - block.num_steps <= most


# Two workers, 4 samples of 10 ms to a batch: 200 samples/s, however quick the step is. In the
# 0.7 s of the first step they make 35 batches ready, which would last for 0.24 s.
LOADER_BOUND = {
    "item": "time.sleep(0.01)",
    "step": "time.sleep(0.7 if taken == 0 else 0.005)",
}
BUFFERED = ThroughputConfig(batch_size=4, num_workers=2, prefetch_factor=20)
TRUE_RATE = 200.0
BRIEF = BlockRequest(min_s=0.1, multiple_of=2)


def test_a_buffer_that_a_slow_first_step_filled_is_not_taken_for_speed(script, start_runner):
    with start_runner(script(**LOADER_BOUND)).start(BUFFERED, StartMode.FORK) as trial:
        request = BlockRequest(num_blocks=0, min_s=0.25, multiple_of=2, settle_s=2.0)
        settled = trial.measure(request, deadline_s=30)
        samples = [settled]
        for _ in range(6):
            # What workers sleep for goes on while they are stopped.
            time.sleep(0.1)
            samples.append(trial.measure(BRIEF, deadline_s=30))
    settling = settled.settling
    assert settling.settled
    assert settling.num_discarded > 5
    assert 1 < settling.num_steps < 100
    assert settling.duration_s > 0.7
    found = summarise(samples, BUFFERED)
    assert found.units_per_s == pytest.approx(TRUE_RATE, rel=0.15)
    assert found.settled
    assert found.warm_up_s == settling.duration_s


def test_the_same_without_settling_would_be_taken_for_much_faster(script, start_runner):
    with start_runner(script(**LOADER_BOUND)).start(BUFFERED, StartMode.FORK) as trial:
        trial.measure(BlockRequest(min_s=0.0), deadline_s=30)
        (block,) = trial.measure(BRIEF, deadline_s=30).blocks
    assert block.units_per_s > 2 * TRUE_RATE
    assert block.ready_change < -8


# 30 ms a step, 20 ms a batch.
BOTH = {"item": "time.sleep(0.005)", "step": "time.sleep(0.03)"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_step_and_loader_are_timed_each_by_itself(script, start_runner, num_workers):
    config = ThroughputConfig(batch_size=4, num_workers=num_workers)

    def rate(trial, mode):
        request = BlockRequest(mode=mode, min_s=0.4, multiple_of=max(1, num_workers))
        (block,) = trial.measure(request, deadline_s=30).blocks
        return block.units_per_s

    with start_runner(script(**BOTH)).start(config, StartMode.FORK) as trial:
        trial.measure(SETTLE, deadline_s=30)
        together = rate(trial, BlockMode.TRAIN)
        compute = rate(trial, BlockMode.COMPUTE)
        load = rate(trial, BlockMode.LOAD)
        again = rate(trial, BlockMode.TRAIN)
    step_s, batch_s = 0.03, 0.02 / max(1, num_workers)
    loop_s = max(step_s, batch_s) if num_workers else step_s + batch_s
    # A sleep may last longer than asked for, and never less. Batches that workers had begun
    # before the block are made a little sooner.
    for found, seconds in ((together, loop_s), (compute, step_s), (again, loop_s)):
        assert 0.7 < found * seconds / 4 <= 1.0
    assert 0.7 < load * batch_s / 4 < 1.15


def test_loading_alone_gives_the_loop_nothing(light_script, start_runner):
    step = "print('step', flush=True)"
    with start_runner(light_script(step=step)).start(CONFIG, StartMode.FORK) as trial:
        request = BlockRequest(mode=BlockMode.LOAD, min_s=0.0, multiple_of=50)
        assert trial.measure(request, deadline_s=30).blocks[0].num_steps == 50
        assert trial._origin.output.read_text() == ""


def test_computing_alone_takes_a_few_batches_again_and_again(light_script, start_runner):
    item = "print('item', flush=True)"
    runner = start_runner(light_script(item=item, step="print('step', flush=True)"))
    with runner.start(CONFIG, StartMode.FORK) as trial:
        request = BlockRequest(mode=BlockMode.COMPUTE, min_s=0.0, multiple_of=50)
        assert trial.measure(request, deadline_s=30).blocks[0].num_steps == 50
        output = trial._origin.output.read_text()
    assert output.count("item\n") == 4
    assert output.count("step\n") > 50


@pytest.mark.parametrize("unit", ["0", "float('nan')", "float('inf')", "-1"])
def test_units_that_add_up_to_nothing_are_refused(light_script, start_runner, unit):
    runner = start_runner(light_script(units=f", units=lambda batch: {unit}"))
    message = r"units given to autotune.steps add up to"
    with (
        runner.start(CONFIG, StartMode.FORK) as trial,
        pytest.raises(TrialFailedError, match=message),
    ):
        trial.measure(SETTLE, deadline_s=30)


def test_units_that_are_no_number_are_refused(light_script, start_runner):
    runner = start_runner(light_script(units=", units=lambda batch: None"))
    with (
        runner.start(CONFIG, StartMode.FORK) as trial,
        pytest.raises(TrialFailedError, match="must give a number, not None"),
    ):
        trial.measure(SETTLE, deadline_s=30)


def test_the_ends_of_epochs_are_counted_inside_blocks(light_script, start_runner):
    # The first batch of each epoch takes 50 ms.
    item = "time.sleep(0.05 if _ == 0 else 0.0)"
    with start_runner(light_script(length=12, item=item)).start(CONFIG, StartMode.FORK) as trial:
        first = BlockRequest(num_blocks=2, min_s=0.0, multiple_of=50)
        blocks = trial.measure(first, deadline_s=30).blocks
        assert trial.facts.steps_per_epoch == 12
    assert [block.num_steps for block in blocks] == [50, 50]
    assert [block.num_epoch_ends for block in blocks] == [4, 4]
    for block in blocks:
        assert 4 * 0.05 <= block.epoch_end_s <= block.wait_s


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_start_of_an_epoch_is_timed_by_itself(script, start_runner, num_workers):
    config = ThroughputConfig(batch_size=4, num_workers=num_workers)
    runner = start_runner(script(length=400, item="time.sleep(0.01)"))
    with runner.start(config, StartMode.FORK) as trial:
        trial.measure(SETTLE, deadline_s=30)
        for _ in range(2):
            seconds = trial.begin_epoch(limit_s=1.0, deadline_s=30)
            # The first batch is loaded anew.
            assert 0.04 <= seconds < 2
        assert trial.measure(BRIEF, deadline_s=30).blocks


def test_data_that_can_be_read_once_only_has_no_further_epoch(tmp_path, start_runner):
    path = tmp_path / "once.py"
    path.write_text(
        "import itertools, autotune\n"
        "default = autotune.ThroughputConfig(batch_size=4)\n"
        "config = autotune.load_config(None, default=default)\n"
        "for batch in autotune.steps(itertools.repeat([0.0] * 4, 10**7)): pass\n"
    )
    with start_runner((sys.executable, str(path))).start(CONFIG, StartMode.FORK) as trial:
        assert trial.facts.steps_per_epoch is None
        assert trial.begin_epoch(limit_s=0.1, deadline_s=30) is None
        # The data goes on where it was.
        assert trial.measure(BlockRequest(min_s=0.0), deadline_s=30).blocks


def test_the_cpu_time_of_a_block_is_that_of_trainer_and_workers(script, start_runner):
    burn = "end = time.process_time() + 0.005\n        while time.process_time() < end: pass"
    step = "end = time.process_time() + 0.01\nwhile time.process_time() < end: pass"
    config = ThroughputConfig(batch_size=4, num_workers=1, num_threads=1)
    with start_runner(script(item=burn, step=step)).start(config, StartMode.FORK) as trial:
        trial.measure(SETTLE, deadline_s=30)
        (block,) = trial.measure(BlockRequest(min_s=0.5), deadline_s=30).blocks
    # A step burns 10 ms, and a batch 20 ms in the worker.
    assert 0.025 < block.cpu_s / block.num_steps < 0.045
    assert block.wait_cpu_s < 0.5 * block.cpu_s


def test_cpu_time_that_others_use_is_seen_and_named(light_script, start_runner, hogs):
    with start_runner(light_script()).start(CONFIG, StartMode.FORK) as trial:
        trial.measure(SETTLE, deadline_s=30)
        hogs(len(affinity()))
        sample = trial.measure(BlockRequest(min_s=0.5), deadline_s=30)
    (block,) = sample.blocks
    assert block.other_cpu_s > 0.5 * block.capacity_cores * block.duration_s
    assert Interference.OTHER_PROCESSES in block.interference
    assert sample.disturbed
    assert summarise([sample], CONFIG).num_disturbed == 1
