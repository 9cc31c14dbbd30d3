"""When the speed-up of forked trials is not that of fresh processes."""

import itertools

import pytest

from autotune.analysis.forks import find_disagreement
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.study.records import Phase, without_forked

from .. import made_up

BASELINE, OTHER = (ThroughputConfig(batch_size=size) for size in (1, 2))
NUMBERS = itertools.count()


def trial(config, rate, *, mode=StartMode.FORK, phase=Phase.SEARCH, block_s=1.0, **changes):
    step = made_up.block(num_units=rate * block_s, duration_s=block_s, **changes)
    blocks = [step] * 4
    return made_up.record(
        *blocks, config=config, number=next(NUMBERS), phase=phase, start_mode=mode
    )


def runs(*ratios):
    """Rounds of the confirmation with these ratios."""
    return {
        config: [
            trial(config, 100 * ratio, mode=StartMode.FRESH, phase=Phase.CONFIRM) for ratio in found
        ]
        for config, found in {BASELINE: [1.0] * len(ratios), OTHER: ratios}.items()
    }


def forked(ratio, **changes):
    return [trial(BASELINE, 150.0), trial(OTHER, 150.0 * ratio, **changes)]


@pytest.mark.parametrize(("in_forks", "fresh"), [(2.0, 1.3), (1.6, 1.1), (1.0, 1.5)])
def test_speed_ups_that_are_far_apart_are_found_after_two_rounds(in_forks, fresh):
    assert find_disagreement(forked(in_forks), runs(fresh), BASELINE) is None
    found = find_disagreement(forked(in_forks), runs(fresh, fresh), BASELINE)
    assert found.config == OTHER
    assert found.forked == pytest.approx(in_forks)
    assert found.fresh.ratio == pytest.approx(fresh)
    assert f"{in_forks:.2f} times" in str(found)


@pytest.mark.parametrize(("in_forks", "fresh"), [(1.4, 1.3), (1.0, 1.1), (1.3, 1.3)])
def test_speed_ups_that_noise_may_have_moved_are_not(in_forks, fresh):
    assert find_disagreement(forked(in_forks), runs(fresh, fresh), BASELINE) is None


def test_rates_that_differ_alike_with_all_settings_mislead_nobody():
    trials = [trial(BASELINE, 300.0), trial(OTHER, 390.0)]
    assert find_disagreement(trials, runs(1.3, 1.3), BASELINE) is None


def test_trials_that_lived_on_what_was_ready_do_not_outvote_others():
    config = ThroughputConfig(batch_size=2, num_workers=4)
    # Of ten steps nine were ready before: counted as one, and off by a factor of two or so.
    block = made_up.block(num_units=300.0, duration_s=1.0, num_steps=10, ready_change=-9)
    brief = made_up.record(block, config=config, number=next(NUMBERS), start_mode=StartMode.FORK)
    assert brief.units_per_s < 100
    fresh = {
        c: [trial(c, 100.0 * ratio, mode=StartMode.FRESH, phase=Phase.CONFIRM) for _ in range(2)]
        for c, ratio in ((BASELINE, 1.0), (config, 1.7))
    }
    assert find_disagreement([trial(BASELINE, 150.0), brief], fresh, BASELINE) is None
    steady = trial(config, 255.0, num_steps=10)
    assert find_disagreement([trial(BASELINE, 150.0), brief, steady], fresh, BASELINE) is None
    wrong = trial(config, 150.0, num_steps=10)
    found = find_disagreement([trial(BASELINE, 150.0), brief, wrong], fresh, BASELINE)
    assert found.forked == pytest.approx(1.0, rel=0.1)


def test_a_short_or_disturbed_trial_is_not_enough():
    short = forked(1.7, block_s=0.004)
    assert find_disagreement(short, runs(1.3, 1.3), BASELINE) is None
    assert find_disagreement(forked(1.7, stolen_s=0.9), runs(1.3, 1.3), BASELINE) is None


def test_without_a_forked_trial_of_both_or_a_round_there_is_nothing_to_compare():
    assert find_disagreement(forked(2.0)[1:], runs(1.0, 1.0), BASELINE) is None
    assert find_disagreement(forked(2.0)[:1], runs(1.0, 1.0), BASELINE) is None
    assert find_disagreement(forked(2.0), {}, BASELINE) is None
    fresh = [trial(config, 100.0, mode=StartMode.FRESH) for config in (BASELINE, OTHER)]
    assert find_disagreement(fresh, runs(2.0, 2.0), BASELINE) is None


def test_figures_of_forked_trials_are_left_out_and_their_failures_are_not():
    fresh = trial(BASELINE, 100.0, mode=StartMode.FRESH)
    failed = made_up.record(
        made_up.block(), start_mode=StartMode.FORK, measurement=None, failure=made_up.FAILURE
    )
    assert without_forked([*forked(2.0), fresh, failed]) == (fresh, failed)
