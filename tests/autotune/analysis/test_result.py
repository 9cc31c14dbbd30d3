"""What a result says of gains that could not be confirmed, and of how sure it is."""

import types

import pytest

from autotune.analysis.result import make_best_config, unconfirmed_gain
from autotune.config import ThroughputConfig
from autotune.intervals import Interval
from autotune.measurement import StartMode
from autotune.report.text import certainty, comparison
from autotune.study.records import Phase

from .. import made_up

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


def test_the_answer_holds_what_the_gpus_did_where_it_is_known():
    def answer_of(*blocks):
        rate = Interval(mean=100.0, low=90.0, high=110.0)
        choice = types.SimpleNamespace(
            best=BASELINE,
            speedup=types.SimpleNamespace(ratio=1.0, low=1.0, high=1.0, significant=False),
            rates={BASELINE: rate},
        )
        return make_best_config(
            choice,
            {BASELINE: [made_up.record(found, config=BASELINE) for found in blocks]},
            baseline=BASELINE,
            definition=types.SimpleNamespace(command_line="train"),
            storage="s",
            store=types.SimpleNamespace(name="n", facts={"versions": {}}),
        )

    told = [made_up.block(gpu_utilisation=share, gpu_energy_j=40.0) for share in (0.6, 0.8)]
    found = answer_of(*told)
    assert found.expected.gpu_utilisation == pytest.approx(0.7)
    assert found.expected.joules_per_sample == found.expected.gpu_joules_per_sample == 1.0
    view = types.SimpleNamespace(
        result=types.SimpleNamespace(best=found), training=None, steps_per_epoch=lambda _: None
    )
    rows = {label: (before, after) for label, before, after in comparison(view)}
    assert rows["GPU utilisation"] == ("70 %", "70 %")
    assert rows["energy per 1,000 samples, J"] == rows["  of the GPUs"] == ("1,000", "1,000")
    view.result.best = answer_of(made_up.block())
    assert not any("GPU" in label for label, *_ in comparison(view))
