import dataclasses
import itertools
import math

import pytest

from autotune.analysis.knowledge import Knowledge
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, Measurement
from autotune.study.records import Phase, TrialRecord

from .. import made_up

BASELINE = ThroughputConfig(batch_size=2, num_threads=1)
FIGURES = Measurement(
    samples_per_s=1.0,
    units_per_s=1.0,
    seconds_per_step=1.0,
    seconds_per_optimizer_step=1.0,
    data_wait_share=0.0,
    cpu_utilisation=0.5,
    cpu_s_per_sample=1.0,
    wait_cpu_share=None,
    throttled_share=0.0,
    peak_memory_bytes=1,
    shared_memory_bytes=0,
    device_memory_bytes=None,
    measured_s=1.0,
    num_steps=1,
    num_blocks=1,
    num_disturbed=0,
    warm_up_s=0.5,
    settled=True,
    steps_per_epoch=None,
    epoch_end_s=None,
    compute_units_per_s=None,
    load_units_per_s=None,
    joules_per_sample=None,
)


NUMBERS = itertools.count()


def record(config, units_per_s=None, *, wait=0.0, cause=None, phase=Phase.SEARCH):
    measurement = failure = None
    if units_per_s is not None:
        measurement = dataclasses.replace(FIGURES, units_per_s=units_per_s, data_wait_share=wait)
    if cause is not None:
        failure = Failure(cause=cause, message="x")
    return TrialRecord(
        number=next(NUMBERS), phase=phase, config=config, measurement=measurement, failure=failure
    )


def workers(number, batch_size=2):
    return ThroughputConfig(batch_size=batch_size, num_workers=number, num_threads=1)


def test_waiting_without_workers_bounds_what_workers_can_bring():
    knowledge = Knowledge.of([record(BASELINE, 100.0, wait=0.5)])
    assert knowledge.bound(workers(2)) == pytest.approx(200)
    assert knowledge.bound(workers(2, batch_size=4)) == math.inf
    assert not knowledge.rules_out(workers(2))


def test_workers_that_can_hide_next_to_nothing_are_ruled_out():
    knowledge = Knowledge.of([record(BASELINE, 100.0, wait=0.01)])
    assert knowledge.rules_out(workers(2))
    assert not knowledge.rules_out(workers(2, batch_size=4))
    assert not knowledge.rules_out(dataclasses.replace(BASELINE, batch_size=4))


def test_a_faster_incumbent_rules_out_more():
    slow = record(BASELINE, 100.0, wait=0.3)
    assert not Knowledge.of([slow]).rules_out(workers(2))
    fast = record(dataclasses.replace(BASELINE, batch_size=8), 200.0)
    assert Knowledge.of([slow, fast]).rules_out(workers(2))


def test_what_needs_more_than_one_that_ran_out_of_memory_is_ruled_out():
    failed = record(workers(2, batch_size=8), cause=FailureCause.OUT_OF_MEMORY)
    knowledge = Knowledge.of([failed])
    assert knowledge.rules_out(workers(4, batch_size=8))
    assert not knowledge.rules_out(workers(4, batch_size=4))
    assert not knowledge.rules_out(workers(1, batch_size=8))
    crashed = record(workers(2, batch_size=8), cause=FailureCause.CRASHED)
    assert not Knowledge.of([crashed]).rules_out(workers(4, batch_size=8))


def test_failed_configurations_are_not_visited_again_and_interrupted_ones_are():
    knowledge = Knowledge.of(
        [
            record(workers(1), cause=FailureCause.CRASHED),
            record(workers(2), cause=FailureCause.INTERRUPTED),
            record(workers(4)),
            record(workers(6), cause=FailureCause.KILLED),
            record(workers(8), cause=FailureCause.KILLED),
            record(workers(8), cause=FailureCause.KILLED),
        ]
    )
    # Whose signal the only one was is unknown.
    assert dict(knowledge.measured) == {workers(1): 0.0, workers(8): 0.0}
    assert knowledge.incumbent == 0.0


def test_confirming_runs_do_not_mix_with_short_ones():
    assert not Knowledge.of([record(BASELINE, 9.0, phase=Phase.CONFIRM)]).measured


def test_finalists_are_the_fastest_beside_the_baseline():
    knowledge = Knowledge.of(
        [
            record(BASELINE, 120.0),
            record(workers(1), 100.0),
            record(workers(2), 100.0),
            record(workers(4), 98.0),
            record(workers(1, batch_size=4), 50.0),
            record(workers(2, batch_size=4), cause=FailureCause.CRASHED),
        ]
    )
    assert knowledge.candidates(BASELINE, {BASELINE}, 2) == (workers(1), workers(2))
    assert knowledge.candidates(BASELINE, {BASELINE}, 9) == (workers(1), workers(2), workers(4))
    assert Knowledge.of([record(BASELINE, 1.0)]).candidates(BASELINE, {BASELINE}, 3) == ()


def test_a_value_with_which_trials_failed_alike_is_ruled_out():
    failed = [record(workers(n), cause=FailureCause.CRASHED) for n in (1, 2, 4)]
    knowledge = Knowledge.of([record(BASELINE, 100.0, wait=0.9), *failed])
    assert knowledge.rules_out(workers(1, batch_size=4))
    assert not knowledge.rules_out(dataclasses.replace(BASELINE, batch_size=4))


def visited(*blocks, config=BASELINE):
    return made_up.record(*blocks, config=config)


DISTURBED = made_up.block(stolen_s=0.5)


def test_a_configuration_that_was_disturbed_throughout_is_in_doubt_until_it_is_visited_again():
    assert Knowledge.of([visited(DISTURBED)]).in_doubt == (BASELINE,)
    assert Knowledge.of([visited(made_up.block())]).in_doubt == ()
    assert Knowledge.of([visited(DISTURBED), visited(DISTURBED)]).in_doubt == ()
    other = workers(2)
    twice = [visited(DISTURBED), visited(DISTURBED, config=other), visited(DISTURBED)]
    assert Knowledge.of(twice).in_doubt == (other,)


def test_a_configuration_with_quiet_blocks_beside_disturbed_ones_is_not_in_doubt():
    assert Knowledge.of([visited(made_up.block(), DISTURBED, DISTURBED)]).in_doubt == ()


def test_a_configuration_that_fails_at_its_second_visit_bounds_nothing():
    knowledge = Knowledge.of(
        [record(BASELINE, 100.0, wait=0.5), record(BASELINE, cause=FailureCause.TIMED_OUT)]
    )
    assert knowledge.bound(workers(2)) == math.inf
    assert not knowledge.rules_out(workers(2))


def test_what_was_disturbed_throughout_bounds_nothing():
    assert Knowledge.of([visited(DISTURBED)]).bound(workers(2)) == math.inf
    assert Knowledge.of([visited(made_up.block())]).bound(workers(2)) < math.inf
