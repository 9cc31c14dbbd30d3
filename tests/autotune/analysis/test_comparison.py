import dataclasses
import math
import random
import statistics

import pytest

from autotune.analysis.comparison import choose, choose_by_runs
from autotune.config import ThroughputConfig
from autotune.intervals import RunSpread
from autotune.space import preference

from ..made_up import block_at, record

BASELINE = ThroughputConfig(batch_size=2, num_threads=2)
CHEAP = ThroughputConfig(batch_size=8, num_threads=1)
DEAR = ThroughputConfig(batch_size=8, num_threads=2, num_workers=4)


def test_a_clear_gain_is_significant_and_inside_its_interval():
    choice = choose({BASELINE: [10, 10.1, 9.9], CHEAP: [20, 20.3, 19.8]}, BASELINE)
    assert choice.best == CHEAP
    assert choice.speedup.significant
    assert choice.speedup.low < 2.0 < choice.speedup.high
    assert choice.rates[CHEAP].low < 20 < choice.rates[CHEAP].high


def test_of_equally_fast_ones_the_one_with_fewer_changed_settings_is_chosen():
    # Fewer threads would be cheaper, and are one more change.
    one_change = ThroughputConfig(batch_size=8, num_threads=2)
    rates = {BASELINE: [10, 10], CHEAP: [20.1, 20.1], one_change: [20, 20]}
    assert choose(rates, BASELINE).best == one_change
    assert choose({**rates, CHEAP: [21, 21]}, BASELINE).best == CHEAP


def test_of_as_many_changes_the_cheapest_is_chosen():
    choice = choose({BASELINE: [10, 10], DEAR: [20.1, 20.1], CHEAP: [20, 20]}, BASELINE)
    assert choice.best == CHEAP
    larger = dataclasses.replace(CHEAP, batch_size=64)
    assert choose({BASELINE: [1], larger: [2.01], CHEAP: [2]}, BASELINE).best == CHEAP


def test_what_follows_from_another_setting_is_no_change_of_its_own():
    workers = ThroughputConfig(batch_size=2, num_threads=2, num_workers=2)
    deeper = dataclasses.replace(workers, prefetch_factor=4)
    small = ThroughputConfig(batch_size=1, gradient_accumulation_steps=2, num_threads=2)
    counts = [preference(config, BASELINE)[0] for config in (BASELINE, workers, deeper, small)]
    assert counts == [0, 1, 2, 1]
    assert [preference(config, deeper)[0] for config in (deeper, workers, BASELINE)] == [0, 1, 1]


def test_of_two_equally_fast_the_one_with_pythons_own_collector_is_chosen():
    frozen = dataclasses.replace(CHEAP, gc="frozen")
    rates = {BASELINE: [100.0] * 3, frozen: [201.0] * 3, CHEAP: [200.0] * 3}
    assert choose(rates, BASELINE).best == CHEAP


def test_a_gain_that_is_too_small_to_matter_is_none():
    same = choose({BASELINE: [10.0] * 20, CHEAP: [10.1] * 20}, BASELINE)
    assert not same.speedup.significant


def test_a_gain_inside_the_noise_is_none():
    noisy = choose({BASELINE: [10, 13, 8], CHEAP: [12, 9, 14]}, BASELINE)
    assert not noisy.speedup.significant
    assert noisy.speedup.low < 1 < noisy.speedup.high


def test_drift_that_hits_a_whole_round_cancels_in_the_ratio():
    drift = [1.0, 0.5, 0.8]
    rates = {BASELINE: [10 * d for d in drift], CHEAP: [15 * d for d in drift]}
    choice = choose(rates, BASELINE)
    assert choice.speedup.ratio == pytest.approx(1.5)
    assert choice.speedup.significant
    # What one more run will reach is another matter: the drift is real.
    assert choice.rates[CHEAP].high / choice.rates[CHEAP].low > 2


def test_a_single_round_claims_little():
    choice = choose({BASELINE: [10], CHEAP: [11]}, BASELINE)
    assert not choice.speedup.significant


def test_two_noisy_rounds_are_enough_for_a_large_gain():
    # Student's t of the one degree of freedom alone would make 1.6 "0.7 to 3.4".
    choice = choose({BASELINE: [10, 11], CHEAP: [17.5, 16]}, BASELINE)
    assert choice.speedup.significant
    assert choice.speedup.high / choice.speedup.low > 1.5


@pytest.mark.parametrize("noise", [0.01, 0.04, 0.1])
def test_equal_configurations_are_rarely_called_different(noise):
    random_ = random.Random(1)
    false_alarms = contained = 0
    num_studies = 400
    for _ in range(num_studies):
        rates = {
            config: [10 * math.exp(random_.gauss(0, noise)) for _ in range(3)]
            for config in (BASELINE, CHEAP, DEAR)
        }
        choice = choose(rates, BASELINE)
        false_alarms += choice.speedup.significant
        again = 10 * math.exp(random_.gauss(0, noise))
        contained += choice.rates[BASELINE].low <= again <= choice.rates[BASELINE].high
    assert false_alarms <= 0.05 * num_studies
    assert contained >= 0.93 * num_studies


def test_rounds_that_agree_say_little_of_other_times_however_many_configurations_there_are():
    configs = [ThroughputConfig(batch_size=1 + number) for number in range(8)]
    rates = {config: [10, 10.001, 10] for config in configs}
    interval = choose(rates, configs[0]).rates[configs[0]]
    assert interval.high / interval.low > 1.2


@pytest.mark.parametrize(("drift", "least"), [(0.02, 0.95), (0.05, 0.95), (0.1, 0.91), (0.2, 0.85)])
def test_one_more_run_falls_into_its_interval_where_rounds_share_their_drift(drift, least):
    # Of machines that vary by more than most, three rounds tell too little for a range that always
    # holds and says anything.
    random_ = random.Random(2)
    contained = 0
    num_studies = 600
    for _ in range(num_studies):
        configs = (BASELINE, CHEAP, DEAR)
        rates = {config: [] for config in configs}
        for _ in range(3):
            shared = random_.gauss(0, drift)
            for config in configs:
                rates[config].append(10 * math.exp(shared + random_.gauss(0, 0.01)))
        choice = choose(rates, BASELINE)
        again = 10 * math.exp(random_.gauss(0, drift) + random_.gauss(0, 0.01))
        contained += choice.rates[BASELINE].low <= again <= choice.rates[BASELINE].high
    assert contained >= least * num_studies


def test_rounds_that_differ_much_leave_a_range_that_says_something():
    # A run printed 7.4 to 48.8 here, by Student's t of two degrees of freedom.
    rates = {BASELINE: [15.0, 20.0, 24.0], CHEAP: [16.0, 19.5, 26.0]}
    interval = choose(rates, BASELINE).rates[BASELINE]
    assert interval.high / interval.low < 5
    assert interval.low < 15 and interval.high > 24


@pytest.mark.parametrize("drift", [0.01, 0.05])
def test_ranges_are_narrower_with_what_a_search_has_learned_and_hold(drift):
    learned = RunSpread(own=0.01, own_freedom=2, drift=drift, drift_freedom=5)
    random_ = random.Random(3)
    contained = 0
    widths, guessed_widths = [], []
    num_studies = 600
    for _ in range(num_studies):
        configs = (BASELINE, CHEAP)
        rates = {config: [] for config in configs}
        for _ in range(3):
            shared = random_.gauss(0, drift)
            for config in configs:
                rates[config].append(10 * math.exp(shared + random_.gauss(0, 0.01)))
        found, guessed = (
            choose(rates, BASELINE, spread=spread).rates[BASELINE] for spread in (learned, None)
        )
        again = 10 * math.exp(random_.gauss(0, drift) + random_.gauss(0, 0.01))
        contained += found.low <= again <= found.high
        widths.append(found.high / found.low)
        guessed_widths.append(guessed.high / guessed.low)
    assert contained >= 0.93 * num_studies
    assert math.log(statistics.median(widths)) < math.log(statistics.median(guessed_widths))


def test_rounds_that_differ_more_than_what_was_learned_widen_the_range():
    learned = RunSpread(own=0.01, own_freedom=2, drift=0.01, drift_freedom=5)
    alike, apart = (
        choose({BASELINE: rates, CHEAP: rates}, BASELINE, spread=learned).rates[CHEAP]
        for rates in ([10.0, 10.0, 10.0], [8.0, 10.0, 12.0])
    )
    assert alike.high / alike.low < 1.1
    assert apart.high / apart.low > 1.3


def test_rounds_that_happen_to_agree_are_no_surer_than_their_blocks():
    quiet = {
        config: [record(*(block_at(rate) for _ in range(8)), config=config) for _ in range(2)]
        for config, rate in ((BASELINE, 100.0), (CHEAP, 150.0))
    }
    noisy = quiet | {
        CHEAP: [
            record(*(block_at(150.0 * f) for f in (0.5, 2.0, 0.4, 2.5) * 2), config=CHEAP)
            for _ in range(2)
        ]
    }
    sure, unsure = (choose_by_runs(runs, BASELINE).speedup for runs in (quiet, noisy))
    assert sure.significant
    assert sure.high / sure.low < 1.3
    assert unsure.high / unsure.low > 2
