"""The spread of blocks over a study, by studies that were made up."""

import dataclasses
import math
import random

import pytest

from autotune.analysis.noise import BlockSpread
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.study.records import Phase, TrialRecord

from ..made_up import SETTLING, block_at, record


def trial(draw, num_blocks, *, sd=0.03, correlation=0.0, rate=100.0):
    """A trial whose blocks' log rates spread around that of `rate`."""
    value = draw.gauss(0, sd)
    blocks = []
    for _ in range(num_blocks):
        blocks.append(block_at(rate * math.exp(value)))
        value = correlation * value + draw.gauss(0, sd * math.sqrt(1 - correlation**2))
    return record(*blocks)


def study(draw, num_trials=30, *, lengths=(2, 6), **options):
    return [trial(draw, draw.randint(*lengths), **options) for _ in range(num_trials)]


def coverage(draw, **options):
    """How often the interval of a trial holds its true rate."""
    contained = total = 0
    for _ in range(60):
        records = study(draw, rate=100.0, **options)
        spread = BlockSpread.of(records)
        for found in records:
            error = math.log(found.units_per_s / 100.0)
            contained += abs(error) <= spread.relative_error(found)
            total += 1
    return contained / total


def test_intervals_of_few_blocks_hold_the_true_rate_as_often_as_they_say():
    assert 0.93 < coverage(random.Random(1)) < 0.99
    assert 0.93 < coverage(random.Random(2), sd=0.1) < 0.99


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("lengths", [(3, 3), (6, 6), (16, 16), (2, 6)])
def test_intervals_hold_where_blocks_resemble_their_neighbours(lengths, correlation):
    assert coverage(random.Random(5), lengths=lengths, correlation=correlation) > 0.89


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.7])
def test_spread_and_likeness_of_blocks_are_found_from_a_few_blocks_a_trial(correlation):
    spread = BlockSpread.of(study(random.Random(3), 2000, sd=0.05, correlation=correlation))
    assert spread.autocorrelation == pytest.approx(correlation, abs=0.1)
    assert math.sqrt(spread.variance) == pytest.approx(0.05, rel=0.1)


def test_blocks_that_resemble_their_neighbours_tell_less():
    found = trial(random.Random(4), 4)
    independent = BlockSpread.of(study(random.Random(3), 200))
    alike = dataclasses.replace(independent, autocorrelation=0.5)
    assert alike.relative_error(found) > 1.3 * independent.relative_error(found)


def test_the_pooled_spread_is_that_of_single_blocks():
    spread = BlockSpread.of(study(random.Random(6), 300, sd=0.05))
    assert math.sqrt(spread.variance) == pytest.approx(0.05, rel=0.1)
    assert spread.freedom > 300


def test_more_blocks_make_a_trial_surer():
    draw = random.Random(7)
    spread = BlockSpread.of(study(draw))
    few, many = trial(draw, 2, sd=0.03), trial(draw, 50, sd=0.03)
    assert spread.relative_error(many) < 0.5 * spread.relative_error(few)


def test_an_erratic_trial_is_unsteady_and_ordinary_ones_are_not():
    draw = random.Random(8)
    num_called = num_ordinary = 0
    for _ in range(40):
        ordinary = study(draw, 20, sd=0.06)
        erratic = trial(draw, 6, sd=0.6)
        spread = BlockSpread.of([*ordinary, erratic])
        num_called += sum(spread.is_unsteady(found) for found in ordinary)
        num_ordinary += len(ordinary)
        steady = record(*(block_at(100.0 * math.exp(0.6 * sign)) for sign in (-1, 1) * 3))
        assert BlockSpread.of([*ordinary, steady]).is_unsteady(steady)
    assert num_called <= 0.005 * num_ordinary


def test_a_spread_that_does_not_matter_is_not_called_unsteady():
    draw = random.Random(9)
    ordinary = study(draw, 20, sd=0.001)
    odd = record(*(block_at(100.0 * math.exp(0.02 * sign)) for sign in (-1, 1) * 3))
    assert not BlockSpread.of([*ordinary, odd]).is_unsteady(odd)


def test_a_trial_that_did_not_settle_is_unsteady():
    settling = dataclasses.replace(SETTLING, settled=False)
    unsettled = record(block_at(100.0), block_at(100.0), settling=settling)
    settled = record(block_at(100.0), block_at(100.0), settling=SETTLING)
    spread = BlockSpread.of([unsettled, settled])
    assert spread.is_unsteady(unsettled)
    assert not spread.is_unsteady(settled)


def test_disturbed_blocks_are_left_out():
    disturbed = dataclasses.replace(block_at(10.0), stolen_s=1.0)
    found = record(block_at(100.0), disturbed, block_at(100.0))
    spread = BlockSpread.of([found])
    assert (spread.variance, spread.freedom) == (pytest.approx(0.0), 1)


def test_a_study_of_single_blocks_tells_nothing():
    found = record(block_at(100.0))
    failed = TrialRecord(
        number=1,
        phase=Phase.SEARCH,
        config=ThroughputConfig(batch_size=1),
        failure=Failure(cause=FailureCause.CRASHED, message="x"),
    )
    spread = BlockSpread.of([found, failed])
    assert (spread.variance, spread.freedom, spread.autocorrelation) == (None, 0, 0.0)
    assert spread.relative_error(found) is None
    assert not spread.is_unsteady(found)
    assert BlockSpread.of([]).relative_error(failed) is None
    assert not BlockSpread.of(study(random.Random(1))).is_unsteady(failed)
