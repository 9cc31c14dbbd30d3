"""Real runs of the adaptive search, and what is stored of them."""

import math

import optuna
import pytest

from autotune.analysis.short_trials import read, recall
from autotune.config import ThroughputConfig
from autotune.measurement import FailureCause, StartMode, summarise
from autotune.study.definition import StudyDefinition
from autotune.study.records import Phase, read_records
from autotune.study.store import StudyStore
from autotune.tuning.executor import Executor
from autotune.tuning.live import LiveBench

from .. import made_up
from ..conftest import processes_of

FOUR, EIGHT = ThroughputConfig(batch_size=4), ThroughputConfig(batch_size=8)


class Notes:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def open_bench(light_script, start_runner):
    """A bench on a light script; gives it, and its study."""

    def make(**parts):
        command = light_script(**parts)
        definition = StudyDefinition(name="x", command=command, block_s=0.05, allow_busy=True)
        study = optuna.create_study(direction="maximize")
        store = StudyStore(study)
        runner = start_runner(command)
        executor = Executor(definition, store=store, runner=runner, observer=Notes())
        return LiveBench(executor), study

    return make


def test_a_visit_is_measured_stored_and_ended(open_bench, tmp_path):
    bench, study = open_bench()
    for config, num_blocks in ((FOUR, 2), (EIGHT, 4)):
        reading = bench.run(config, num_blocks)
        assert reading.num_units == pytest.approx(reading.num_steps * config.batch_size)
        assert reading.duration_s > 0.05
    records = read_records(study)
    assert [record.config for record in records] == [FOUR, EIGHT]
    # Disturbed blocks are measured again, and kept.
    assert [
        sum(len(s.blocks) for s in r.samples) >= n for r, n in zip(records, (2, 4), strict=True)
    ]
    assert {record.start_mode for record in records} == {StartMode.FORK}
    # The host alone is left.
    assert len(processes_of(tmp_path / "train it.py")) == 1
    assert [visit.outcome for visit in recall(records)][-1] == reading


def test_what_was_interrupted_tells_nothing(open_bench):
    _, study = open_bench()
    StudyStore(study).begin(FOUR, Phase.SEARCH)
    # The next coordinator finds a trial that seems to run.
    StudyStore(study)
    assert list(recall(read_records(study))) == []


@pytest.mark.parametrize(
    "parts",
    [
        {"before": "calls = []", "step": "calls.append(1); assert len(calls) < 40"},
        {"step": "assert config.batch_size == 4"},
    ],
)
def test_a_run_that_fails_is_ended_and_kept_as_a_failure(open_bench, parts, tmp_path):
    bench, study = open_bench(**parts)
    assert bench.run(EIGHT, 200).cause is FailureCause.CRASHED
    [earlier] = recall(read_records(study))
    assert earlier.outcome.cause is FailureCause.CRASHED
    # The host alone is left.
    assert len(processes_of(tmp_path / "train it.py")) == 1


def test_readings_take_off_what_the_loader_cannot_sustain():
    drained = made_up.sample(made_up.block(num_steps=10, ready_change=-5), at_s=7.0)
    reading = read(made_up.record_of([drained]))
    assert reading.num_units == pytest.approx(2000.0)
    assert reading.num_steps == 10
    assert reading.at_s == pytest.approx(7.5)


@pytest.mark.parametrize(
    ("ready_change", "num_workers", "error"),
    [(0, 4, 0.0), (3, 4, 0.0), (-5, 1, 1 / 5), (-2, 8, 4 / 8), (-10, 4, 2 / 0.5)],
)
def test_what_was_taken_from_the_buffer_makes_a_reading_uncertain(ready_change, num_workers, error):
    config = ThroughputConfig(batch_size=4, num_workers=num_workers)
    block = made_up.block(num_steps=10, ready_change=ready_change)
    assert read(made_up.record(block, config=config)).error == pytest.approx(error)


def test_disturbed_blocks_do_not_count_where_there_are_others():
    spoiled = made_up.block(num_units=1.0, other_cpu_s=2.0)
    reading = read(made_up.record(spoiled, made_up.block()))
    assert math.isclose(reading.duration_s, 1.0)


def test_an_end_of_an_epoch_is_charged_as_often_as_epochs_end():
    # Of two epochs' worth of steps, the one end that happened to be seen took half a second.
    blocks = [made_up.block(num_epoch_ends=1, epoch_end_s=0.5, wait_s=0.5), made_up.block(wait_s=0)]
    samples = (made_up.sample(*blocks),)
    measurement = summarise(samples, made_up.PLAIN, steps_per_epoch=10)
    reading = read(made_up.record_of(samples, measurement=measurement))
    assert reading.duration_s == pytest.approx(2.5)
    assert reading.wait_s == pytest.approx(1.0)


def test_what_starting_took_is_told_of_trials_that_start_as_the_search_starts_them():
    assert read(made_up.record(made_up.block(), duration_s=1.7)).start_s == pytest.approx(0.7)
    fresh = made_up.record(made_up.block(), duration_s=1.7, phase=Phase.CONFIRM)
    assert read(fresh).start_s is None
