"""The best settings under conditions, from trials that nobody ran."""

import dataclasses

import pytest

from autotune.analysis.alternatives import Explored, best_within, by_batch_size, cost_per_sample
from autotune.analysis.estimates import Estimates
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.measurement import Failure, FailureCause
from autotune.requirements import Objective, Requirements
from autotune.space import Space
from autotune.study.records import Phase, TrialRecord

from .. import made_up

BASELINE = ThroughputConfig(batch_size=4, num_threads=2)
SPACE = Space(axes={"batch_size": (4, 8, 16), "num_workers": (0, 2, 4)})
CONFIGS = tuple(dict.fromkeys((BASELINE, *SPACE.configurations(BASELINE))))
MIB = 2**20


def run_of(config, number):
    """Larger batches are faster, and so are workers, which take CPU time and memory."""
    rate = 100.0 * config.batch_size**0.5 * (1 + 0.2 * config.num_workers)
    num_samples = 10 * config.batch_size
    steps = made_up.block(
        num_steps=10,
        num_samples=num_samples,
        num_units=float(num_samples),
        duration_s=num_samples / rate,
        wait_s=0.1 * num_samples / rate,
        cpu_s=num_samples * (1 + config.num_workers) / 1000,
        energy_j=None,
    )
    record = made_up.record(steps, config=config, number=number)
    memory = (100 + 50 * config.num_workers + config.batch_size) * MIB
    return dataclasses.replace(
        record, measurement=dataclasses.replace(record.measurement, peak_memory_bytes=memory)
    )


def explored(configs=CONFIGS, *failures):
    records = tuple(run_of(config, number) for number, config in enumerate(configs))
    estimates = Estimates.of(CONFIGS, records, usable_cores=4)
    return Explored.of(CONFIGS, estimates, (*records, *failures))


FASTEST = SPACE.changed(BASELINE, batch_size=16, num_workers=4)


def test_each_batch_size_has_its_best_settings():
    found = by_batch_size(explored(), FASTEST)
    assert [(one.config.batch_size, one.config.num_workers) for one in found] == [
        (4, 4),
        (8, 4),
        (16, 4),
    ]
    assert found[2].config == FASTEST
    assert found[2].ratio.ratio == 1.0
    assert found[0].ratio.low < 0.5 < found[0].ratio.high
    assert all(one.was_measured for one in found)


def test_what_never_ran_is_told_from_what_did():
    known = explored([BASELINE, SPACE.changed(BASELINE, num_workers=4), FASTEST])
    by_size = {one.config.batch_size: one for one in by_batch_size(known, FASTEST)}
    assert by_size[4].was_measured
    assert not by_size[8].was_measured


def test_what_was_confirmed_beside_the_chosen_one_is_told_as_it_was_confirmed():
    other = SPACE.changed(BASELINE, batch_size=8, num_workers=4)
    rounds = [
        dataclasses.replace(
            run_of(config, 100 + 2 * number + (config == other)),
            phase=Phase.CONFIRM,
            round_number=number,
            host="here",
        )
        for number in range(3)
        for config in (FASTEST, other)
    ]
    # The confirmation found both alike, whatever the search did.
    alike = rounds[0].measurement
    rounds = [dataclasses.replace(record, measurement=alike) for record in rounds]
    by_size = {
        one.config.batch_size: one for one in by_batch_size(explored(CONFIGS, *rounds), FASTEST)
    }
    assert by_size[8].ratio.ratio == pytest.approx(1.0)
    assert by_size[4].ratio.ratio < 0.6


@pytest.mark.parametrize(
    ("requirements", "batch_size", "num_workers"),
    [
        ({"batch_size": 4}, 4, 4),
        ({"max_workers": 2}, 16, 2),
        ({"max_workers": 3, "batch_size": 8}, 8, 2),
        ({"max_memory_bytes": 250 * MIB}, 16, 2),
        ({"max_memory_bytes": 110 * MIB}, 8, 0),
        ({"objective": "cpu"}, 4, 0),
        ({"objective": "cpu", "batch_size": 16}, 16, 0),
    ],
)
def test_the_best_keeps_to_what_is_asked(requirements, batch_size, num_workers):
    requirements = {
        **requirements,
        "objective": Objective(requirements.get("objective", "throughput")),
    }
    found = best_within(explored(), Requirements(**requirements))
    assert (found.batch_size, found.num_workers) == (batch_size, num_workers)


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        ({"batch_size": 5}, "no configuration with batch_size 5: its batch sizes are 4, 8, 16"),
        ({"max_memory_bytes": MIB}, "known to fit; the least that was measured is 104 MiB"),
        ({"objective": Objective.ENERGY}, "no trial of this study tells the energy per sample"),
    ],
)
def test_what_nothing_keeps_to_is_told_with_what_there_is(requirements, message):
    with pytest.raises(BadInputError, match=message):
        best_within(explored(), Requirements(**requirements))


def test_memory_of_what_never_ran_is_what_lighter_ones_took_at_least():
    known = explored([BASELINE, SPACE.changed(BASELINE, num_workers=2)])
    found = best_within(known, Requirements(max_memory_bytes=150 * MIB))
    assert found.num_workers == 0


def failed(config, cause, number, phase):
    failure = Failure(cause=cause, message="no more")
    return TrialRecord(number=number, phase=phase, config=config, failure=failure)


def test_what_failed_or_would_is_offered_to_nobody():
    ran = [BASELINE, SPACE.changed(BASELINE, num_workers=4)]
    largest = SPACE.changed(BASELINE, batch_size=16)
    exhausted = failed(largest, FailureCause.OUT_OF_MEMORY, 9, Phase.SEARCH)
    known = explored(ran, exhausted)
    assert {one.config.batch_size for one in by_batch_size(known, BASELINE)} == {4, 8}
    with pytest.raises(BadInputError, match="every configuration with batch_size 16 failed"):
        best_within(known, Requirements(batch_size=16))
    # One that ran forked, and failed in a fresh process.
    crashed = failed(ran[1], FailureCause.CRASHED, 9, Phase.CONFIRM)
    assert best_within(explored(ran, crashed), Requirements(batch_size=4)) != ran[1]


def test_a_cost_that_is_not_known_is_none():
    measurement = run_of(BASELINE, 0).measurement
    assert cost_per_sample(Objective.ENERGY, measurement) is None
    assert cost_per_sample(Objective.THROUGHPUT, measurement) == pytest.approx(1 / 200)
    with_energy = dataclasses.replace(measurement, joules_per_sample=0.5)
    assert cost_per_sample(Objective.ENERGY, with_energy) == 0.5


def test_requirements_are_told_as_they_were_asked():
    wanted = Requirements(
        batch_size=32, max_workers=4, max_memory_bytes=8 * 2**30, objective=Objective.CPU
    )
    assert str(wanted) == (
        "batch_size 32, at most 4 workers, at most 8,192 MiB of memory, the least CPU seconds per "
        "sample"
    )
