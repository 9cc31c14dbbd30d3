"""Real runs of the adaptive search, and what is stored of them."""

import math

import optuna
import pytest

from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.search import live
from autotune.search.definition import StudyDefinition
from autotune.search.live import LiveBench, read_samples, recall
from autotune.search.recorder import Recorder
from autotune.search.records import read_records
from autotune.search.study import StudyStore

from . import made_up
from .conftest import processes_of

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
        store = StudyStore(study, alone=True)
        runner = start_runner(command)
        recorder = Recorder(definition, store=store, runner=runner, observer=Notes())
        return LiveBench(recorder), study

    return make


def test_runs_live_side_by_side_and_what_they_show_is_stored_at_once(open_bench):
    bench, study = open_bench()
    with bench:
        four, eight = bench.open(FOUR), bench.open(EIGHT)
        for run in (four, eight, four):
            reading = bench.measure(run, 2)
            assert reading.num_units == pytest.approx(reading.num_steps * (4 if run == four else 8))
            assert reading.duration_s > 0.1
        # As another process sees it that reads the storage now, or after this one was killed.
        records = read_records(study)
        assert [record.measurement for record in records] == [None, None]
        # Disturbed blocks are measured again, and kept.
        stored = [sum(len(s.blocks) for s in r.samples) for r in records]
        assert stored[0] >= 4
        assert stored[1] >= 2
        bench.close(four)
        assert 2 <= read_records(study)[0].measurement.num_blocks <= stored[0]
    assert 1 <= read_records(study)[1].measurement.num_blocks <= stored[1]
    assert {record.start_mode for record in read_records(study)} == {StartMode.FORK}


def test_what_was_interrupted_is_recalled_with_what_it_showed(open_bench):
    bench, study = open_bench()
    run = bench.open(FOUR)
    bench.measure(run, 1)
    # The next coordinator finds a trial that seems to run.
    StudyStore(study, alone=True)
    [earlier] = recall(read_records(study))
    assert earlier.config == FOUR
    assert earlier.failure is None
    # More than one where a block was disturbed and measured again.
    assert sum(reading.num_steps for reading in earlier.readings) > 0


@pytest.mark.parametrize(
    "parts",
    [
        {"before": "calls = []", "step": "calls.append(1); assert len(calls) < 40"},
        {"step": "assert config.batch_size == 4"},
    ],
)
def test_a_run_that_fails_is_ended_and_kept_as_a_failure(open_bench, parts, tmp_path):
    bench, study = open_bench(**parts)
    with bench:
        found = bench.open(EIGHT)
        if not isinstance(found, Failure):
            found = bench.measure(found, 200)
        assert found.cause is FailureCause.CRASHED
        [earlier] = recall(read_records(study))
        assert earlier.failure.cause is FailureCause.CRASHED
        # The host alone is left.
        assert len(processes_of(tmp_path / "train it.py")) == 1


def test_there_is_no_room_where_memory_is_short(open_bench, monkeypatch):
    bench, _ = open_bench()
    with bench:
        assert bench.has_room(FOUR)
        bench.measure(bench.open(FOUR), 1)
        assert bench.has_room(FOUR)
        monkeypatch.setattr(live, "memory_left_bytes", lambda: 1000)
        assert not bench.has_room(FOUR)


def test_readings_take_off_what_the_loader_cannot_sustain():
    drained = made_up.sample(made_up.block(num_steps=10, ready_change=-5), at_s=7.0)
    reading = read_samples([drained])
    assert reading.num_units == pytest.approx(2000.0)
    assert reading.num_steps == 10
    assert reading.at_s == pytest.approx(7.5)


def test_disturbed_blocks_do_not_count_where_there_are_others():
    spoiled = made_up.block(num_units=1.0, other_cpu_s=2.0)
    reading = read_samples([made_up.sample(spoiled, made_up.block())])
    assert math.isclose(reading.duration_s, 1.0)
