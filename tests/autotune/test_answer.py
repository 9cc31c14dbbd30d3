"""What a result says of gains that could not be confirmed, and of how sure it is."""

import types

import pytest

from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.report.words import certainty
from autotune.search.answer import unconfirmed_gain
from autotune.search.records import Phase

from . import made_up

BASELINE, OTHER, BEST = (ThroughputConfig(batch_size=size) for size in (1, 2, 4))


def trial(config, rate, phase=Phase.SEARCH, **changes):
    return made_up.record(made_up.block_at(rate), config=config, phase=phase, **changes)


SEARCHED = [trial(BASELINE, 100.0, Phase.PROBE), trial(OTHER, 110.0), trial(BEST, 136.0)]


def test_a_gain_that_failed_in_a_fresh_process_is_told_with_the_reason():
    failed = trial(
        BEST,
        1.0,
        Phase.CONFIRM,
        number=9,
        start_mode=StartMode.FRESH,
        measurement=None,
        failure=made_up.FAILURE,
    )
    found = unconfirmed_gain([*SEARCHED, failed], BASELINE)
    assert (found.config, found.ratio) == (BEST, pytest.approx(1.36))
    assert found.reason == "in a fresh process it failed: crashed: it broke"


def test_a_gain_that_there_was_no_time_for_is_told_so():
    assert "no time" in unconfirmed_gain(SEARCHED, BASELINE).reason


def test_where_no_gain_worth_having_was_measured_there_is_nothing_to_tell():
    assert unconfirmed_gain(SEARCHED[:1], BASELINE) is None
    assert unconfirmed_gain([*SEARCHED[:1], trial(OTHER, 101.0)], BASELINE) is None
    assert unconfirmed_gain(SEARCHED[1:], BASELINE) is None


def sure(probability):
    result = types.SimpleNamespace(
        probability=probability, num_configurations=84, pays_after_steps=None
    )
    [line] = certainty(result)
    return line


def test_a_search_that_did_not_come_to_an_end_says_so_and_not_zero_per_cent():
    assert sure(0.31).startswith("with 31 % probability")
    assert "0 %" not in sure(0.004)
    assert "some of the 84 configurations are probably faster" in sure(0.004)
