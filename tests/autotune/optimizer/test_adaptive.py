"""The adaptive search, on a bench that follows a known law."""

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest

from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.optimizer.adaptive import AdaptiveOptimizer, Reading, ShortTrial, Stop
from autotune.optimizer.posterior import Hyperparameters
from autotune.optimizer.trial_cost import ConfirmingCost
from autotune.tuning.search_loop import check_best, search

CONFIGS = [
    ThroughputConfig(batch_size=2**power, num_workers=workers, num_threads=threads)
    for power in range(8)
    for workers in (0, 1, 2, 4)
    for threads in (1, 2)
]
BASELINE = ThroughputConfig(batch_size=4, num_threads=2)


def law(config):
    """Seconds per sample: loading takes 4 ms, and workers hide it; the step has an overhead."""
    step_s = 0.02 / config.batch_size + 0.001 + 0.001 / config.num_threads
    if not config.num_workers:
        return step_s + 0.004
    return max(step_s, 0.004 / config.num_workers, (config.num_threads * step_s + 0.004) / 2)


class MadeUpBench:
    """Runs that take no time but on their own clock."""

    def __init__(
        self,
        *,
        seconds=law,
        load_s=0.004,
        noise=0.02,
        fails=lambda config: None,
        seed=0,
        start_s=0.5,
    ):
        self.now_s = 0.0
        self.trials = []
        self._seconds = seconds
        self._load_s = load_s
        self._noise = noise
        self._fails = fails
        self._start_s = start_s
        self._random = random.Random(seed)

    def run(self, config, num_blocks):
        self.now_s += self._start_s
        cause = self._fails(config)
        outcome = Failure(cause=cause, message="x") if cause else self._measure(config, num_blocks)
        self.trials.append(ShortTrial(config=config, outcome=outcome))
        return outcome

    def _measure(self, config, num_blocks):
        step_s = self._seconds(config) * config.batch_size
        num_steps = math.ceil(num_blocks * 0.25 / step_s)
        noise = self._noise / math.sqrt(num_steps * step_s)
        duration_s = num_steps * step_s * math.exp(self._random.gauss(0, noise))
        self.now_s += duration_s
        wait_s = 0.0 if config.num_workers else self._load_s * config.batch_size * num_steps
        return Reading(
            at_s=self.now_s - duration_s / 2,
            duration_s=duration_s,
            num_units=num_steps * config.batch_size,
            num_steps=num_steps,
            wait_s=min(wait_s, duration_s),
            lost_s=min(wait_s, duration_s),
            wait_cpu_s=min(wait_s, duration_s),
            start_s=self._start_s,
        )


def optimizer_of(configs=CONFIGS, **options):
    return AdaptiveOptimizer(configs, BASELINE, usable_cores=2, block_s=0.25, **options)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_best_among_few_visits_and_is_rather_sure(seed):
    bench = MadeUpBench(seed=seed)
    optimizer = optimizer_of()
    assert search(optimizer, bench, math.inf)
    best, *_ = optimizer.standings()
    # The second best is 2.5 % slower.
    assert law(best.config) <= 1.03 * min(map(law, CONFIGS))
    assert best.probability > 0.6
    assert math.exp(best.log_ratio) == pytest.approx(law(BASELINE) / law(best.config), rel=0.1)
    assert optimizer.num_tried < len(CONFIGS) / 2


class CollectorBench(MadeUpBench):
    """Loading takes less with a frozen heap, in that proportion."""

    def __init__(self, share, **options):
        super().__init__(seconds=self.seconds, **options)
        self._share = share

    def loading_s(self, config):
        return 0.004 * (self._share if config.gc == "frozen" else 1.0)

    def seconds(self, config):
        plain_s = law(dataclasses.replace(config, gc="default"))
        saved_s = 0.0 if config.num_workers else 0.004 - self.loading_s(config)
        return plain_s - saved_s

    def _measure(self, config, num_blocks):
        self._load_s = self.loading_s(config)
        return super()._measure(config, num_blocks)


@pytest.mark.parametrize(("share", "chosen"), [(0.25, "frozen"), (1.0, "default")])
def test_the_collector_is_changed_where_that_gains_and_kept_where_it_does_not(share, chosen):
    alone = [config for config in CONFIGS if not config.num_workers]
    space = [dataclasses.replace(c, gc=gc) for c in alone for gc in ("default", "frozen")]
    bench = CollectorBench(share, noise=0.002)
    optimizer = optimizer_of(space)
    assert search(optimizer, bench, math.inf)
    best, *_ = optimizer.standings()
    assert best.config.gc == chosen
    assert best.was_measured
    assert bench.seconds(best.config) <= 1.03 * min(map(bench.seconds, space))
    assert {visit.config.gc for visit in bench.trials} == {"default", "frozen"}


class VaryingBench(MadeUpBench):
    """Processes that differ, at times that lie minutes apart."""

    def __init__(self, sd, **options):
        super().__init__(noise=0.001, start_s=100.0, **options)
        self._sd = sd

    def _measure(self, config, num_blocks):
        found = super()._measure(config, num_blocks)
        return dataclasses.replace(
            found, num_units=found.num_units * math.exp(self._random.gauss(0, self._sd))
        )


@pytest.mark.parametrize("sd", [0.01, 0.15])
def test_how_much_runs_differ_is_what_was_seen_of_it(sd):
    bench, optimizer = VaryingBench(sd), optimizer_of()
    assert optimizer.run_spread() is None
    for number, config in enumerate(CONFIGS[:8] * 5):
        optimizer.tell(ShortTrial(config=config, outcome=bench.run(config, 8)))
        if number == 3:
            assert optimizer.run_spread() is None
    found = optimizer.run_spread()
    guess = Hyperparameters()
    guessed = math.hypot(guess.process, guess.drift)
    learned = math.hypot(found.own, found.drift)
    # Far from the guess, towards what is true.
    assert abs(math.log(learned / sd)) < 0.6 * abs(math.log(guessed / sd))
    # Each was at a time of its own; and what was seen is never taken for sure.
    assert found.drift_freedom == 10
    at_once = optimizer_of()
    for trial in bench.trials[:10]:
        outcome = dataclasses.replace(trial.outcome, at_s=5.0)
        at_once.tell(dataclasses.replace(trial, outcome=outcome))
    assert at_once.run_spread().drift_freedom == 2.5
    elsewhere = dataclasses.replace(bench.trials[0].outcome, at_s=5.0 - 1e9)
    at_once.tell(ShortTrial(config=CONFIGS[0], outcome=elsewhere))
    assert at_once.run_spread().drift_freedom == 2.5


def hates_small_batches(config):
    """Workers are gains, and batches of 8 samples or more."""
    return 0.001 * (1 + (config.batch_size < 8)) * (1 if config.num_workers else 2)


def only_workers(config):
    return 0.001 if config.num_workers else 0.002


@pytest.mark.parametrize(("seconds", "batch_size"), [(hates_small_batches, 8), (only_workers, 4)])
def test_settings_that_are_not_shown_to_gain_are_taken_back(seconds, batch_size):
    bench, optimizer = MadeUpBench(seconds=seconds), optimizer_of()
    configs = [
        ThroughputConfig(batch_size=size, num_workers=workers, num_threads=threads)
        for size, workers, threads in [(4, 0, 2), (64, 2, 1), (4, 2, 1), (64, 0, 1), (64, 2, 2)]
    ]
    for config in configs:
        optimizer.tell(ShortTrial(config=config, outcome=bench.run(config, 8)))
    simpler = optimizer.simpler(configs[1])
    # Not what lies elsewhere in the space: each setting is the baseline's or the best's.
    changed = 64 if batch_size > 4 else 4
    assert simpler == ThroughputConfig(batch_size=changed, num_workers=2, num_threads=2)
    assert optimizer.simpler(simpler) is None


@pytest.mark.parametrize("best", [1, 3])
def test_how_workers_are_started_is_taken_back_as_other_words_are(best):
    def config(workers, method="default"):
        return ThroughputConfig(
            batch_size=4, num_workers=workers, multiprocessing_context=method, num_threads=1
        )

    configs = [config(1, "spawn"), config(2, "spawn"), config(2, "forkserver"), config(0)]
    workers = configs[best].num_workers
    bench = MadeUpBench(seconds=lambda found: 0.001 * (1 + (found.num_workers != workers)))
    optimizer = AdaptiveOptimizer(configs, configs[0], usable_cores=2, block_s=0.25)
    for found in configs:
        for _ in range(2):
            optimizer.tell(ShortTrial(config=found, outcome=bench.run(found, 8)))
    assert optimizer.standings()[0].config == configs[best]


def test_where_the_baseline_may_be_as_fast_nothing_is_simpler_but_it():
    bench, optimizer = MadeUpBench(seconds=lambda _: 0.001), optimizer_of()
    configs = [BASELINE, ThroughputConfig(batch_size=64, num_workers=2, num_threads=1)]
    for config in configs:
        optimizer.tell(ShortTrial(config=config, outcome=bench.run(config, 8)))
    assert optimizer.simpler(configs[1]) is None


def step_s(config):
    return 0.01 + 0.001 * config.batch_size


def falls_out_of_a_cache(config):
    return 0.01 * max(1.0, config.batch_size / 50) ** 1.5


def swaps(config):
    return step_s(config) * (10 if config.batch_size > 32 else 1)


def suits_one_batch_size(config):
    return step_s(config) * (0.6 if config.batch_size == 32 else 1)


def hates_two_threads(config):
    return step_s(config) * (2.5 if config.num_threads == 2 else 1)


def hates_workers(config):
    return step_s(config) * (1.5 if config.num_workers > 1 else 1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "of_step",
    [falls_out_of_a_cache, swaps, suits_one_batch_size, hates_two_threads, hates_workers],
)
def test_a_loop_that_no_law_describes_has_its_best_found_too(of_step, seed):
    def seconds(config):
        load_s = 0.0005 * config.batch_size
        if not config.num_workers:
            return (of_step(config) + load_s) / config.batch_size
        return max(of_step(config), load_s / config.num_workers) / config.batch_size

    bench = MadeUpBench(seconds=seconds, load_s=0.0005, seed=seed)
    optimizer = optimizer_of()
    search(optimizer, bench, 120.0)
    best, *_ = optimizer.standings()
    assert seconds(best.config) <= 1.03 * min(map(seconds, CONFIGS))


def test_where_nothing_changes_the_speed_it_stops_soon():
    bench = MadeUpBench(seconds=lambda config: 0.005, load_s=0.0)
    optimizer = optimizer_of()
    assert search(optimizer, bench, math.inf)
    best, *_ = optimizer.standings()
    # The best of many estimates is a lucky one; more cannot be asked of it.
    assert abs(best.log_ratio) < 4 * best.log_ratio_sd
    # All visits of a block each would take 48 s, and say less.
    assert bench.now_s < 120


def test_a_time_that_is_up_is_kept_and_is_told():
    bench = MadeUpBench()
    optimizer = optimizer_of()
    assert not search(optimizer, bench, 4.0)
    assert bench.now_s <= 5.0


def test_the_longer_training_goes_on_the_longer_it_looks():
    def taken_s(horizon_s):
        bench = MadeUpBench(noise=0.1)
        search(optimizer_of(horizon_s=horizon_s), bench, math.inf)
        return bench.now_s

    assert taken_s(60.0) < taken_s(36_000.0)


def test_what_cannot_run_is_not_chosen_and_nothing_heavier_is_tried_after_memory_ran_out():
    tried = []

    def fails(config):
        tried.append(config)
        return FailureCause.OUT_OF_MEMORY if config.batch_size >= 32 else None

    bench = MadeUpBench(fails=fails)
    optimizer = optimizer_of()
    search(optimizer, bench, math.inf)
    best, *_ = optimizer.standings()
    assert best.config.batch_size < 32
    heavy = [config for config in tried if config.batch_size >= 32]
    for earlier, later in itertools.pairwise(heavy):
        assert not (
            later.batch_size >= earlier.batch_size
            and later.num_workers >= earlier.num_workers
            and later.num_prefetched >= earlier.num_prefetched
        )


def test_a_space_in_which_nothing_runs_ends():
    bench = MadeUpBench(fails=lambda config: FailureCause.CRASHED)
    optimizer = optimizer_of()
    assert not search(optimizer, bench, math.inf)


def test_visits_are_counted_and_bounded():
    bench = MadeUpBench()
    told = []
    assert not search(
        optimizer_of(), bench, math.inf, max_trials=2, after_each=lambda: told.append(1)
    )
    # The baseline comes first.
    assert bench.trials[0].config == BASELINE
    assert len(bench.trials) == 3
    assert len(told) == 2


def test_what_earlier_runs_showed_is_not_measured_again():
    first = MadeUpBench()
    search(optimizer_of(), first, math.inf)
    second = MadeUpBench()
    second.now_s = first.now_s
    optimizer = optimizer_of()
    optimizer.learn(first.trials)
    assert search(optimizer, second, math.inf)
    assert len(second.trials) <= 3


class Shifted:
    """A posterior, but that the machine is twice as fast."""

    def __init__(self, posterior):
        self.mean = posterior.mean + math.log(2)
        self.covariance = posterior.covariance


def test_what_an_earlier_search_believed_is_where_the_next_one_starts():
    first = optimizer_of()
    search(first, MadeUpBench(), math.inf)
    alone, guided = MadeUpBench(), MadeUpBench()
    search(optimizer_of(), alone, math.inf)
    optimizer = optimizer_of(prior=Shifted(first.posterior()))
    search(optimizer, guided, math.inf)
    best, *_ = optimizer.standings()
    assert law(best.config) <= 1.03 * min(map(law, CONFIGS))
    assert len(guided.trials) <= len(alone.trials)
    # It is measured all the same.
    assert len(guided.trials) >= 2


def test_what_ran_once_can_run_even_if_it_failed_at_another_time():
    failure = Failure(cause=FailureCause.CRASHED, message="a fork that is not survived")
    reading = Reading(
        at_s=1.0,
        duration_s=1.0,
        num_units=200.0,
        num_steps=50,
        wait_s=0.1,
        lost_s=0.1,
        wait_cpu_s=0.1,
    )
    optimizer = optimizer_of()
    optimizer.learn(
        [
            ShortTrial(config=BASELINE, outcome=failure),
            ShortTrial(config=BASELINE, outcome=reading),
            ShortTrial(config=CONFIGS[0], outcome=failure),
        ]
    )
    able = [standing.config for standing in optimizer.standings()]
    assert BASELINE in able
    assert CONFIGS[0] not in able


def test_an_earlier_search_that_saw_nothing_tells_nothing():
    optimizer = optimizer_of()
    failure = Failure(cause=FailureCause.CRASHED, message="x")
    optimizer.learn([ShortTrial(config=BASELINE, outcome=failure)])
    assert optimizer.posterior() is None


def test_where_nothing_runs_any_more_what_did_is_the_answer():
    calls = []

    def fails(config):
        calls.append(config)
        return FailureCause.CRASHED if len(calls) > 4 else None

    bench = MadeUpBench(fails=fails)
    optimizer = optimizer_of()
    search(optimizer, bench, math.inf)
    best, *_ = optimizer.standings()
    assert best.config in calls[:4]
    assert best.was_measured


def test_a_start_that_takes_long_is_charged_to_large_batches_as_it_is_to_small_ones():
    bench = MadeUpBench(start_s=20.0)
    optimizer = optimizer_of()
    search(optimizer, bench, math.inf, max_trials=3)
    step_s = np.linspace(0.01, 4.0, len(optimizer.configs))
    start_s = optimizer._start_s(step_s)
    # Where steps are long, fewer are enough to settle.
    assert start_s[-1] - start_s[0] == pytest.approx(2 * 4.0 - 4 * 0.01)
    assert 10.0 < start_s[0] < 20.0


@pytest.mark.parametrize("budget_s", [400.0, 600.0, 1200.0])
def test_a_slow_loop_is_left_the_time_to_confirm_what_is_found(budget_s):
    # Steps of up to a minute: what a round takes depends on what is confirmed.
    slow = lambda config: 200 * law(config)  # noqa: E731
    bench = MadeUpBench(seconds=slow, load_s=0.8)
    confirming = ConfirmingCost(start_s=5.0, measured_s=2.5)
    optimizer = optimizer_of(confirming=confirming)
    search(optimizer, bench, budget_s, reserved_s=20.0)
    while check_best(optimizer, bench, budget_s):
        pass
    left_s = budget_s - bench.now_s
    found = optimizer.to_confirm({BASELINE}, left_s=left_s)
    assert found
    step_s = np.array([slow(config) * config.batch_size for config in (BASELINE, *found)])
    round_s = confirming.run_s(step_s, np.ones(len(step_s))).sum()
    # What is expected of what never ran is not exactly what it takes.
    assert round_s <= 1.1 * left_s
    if len(found) == 2:
        assert optimizer.to_confirm({BASELINE}, left_s=round_s / 2) == found[:1]


def test_a_gain_that_was_measured_is_confirmed_however_long_that_takes():
    bench = MadeUpBench(noise=0.001)
    optimizer = optimizer_of(confirming=ConfirmingCost(start_s=5.0, measured_s=2.5))
    search(optimizer, bench, math.inf)
    best = optimizer.standings()[0]
    assert best.was_measured
    in_time, late = (optimizer.to_confirm({BASELINE}, left_s=left_s) for left_s in (1e3, 1.0))
    assert in_time[0] == late[0] == best.config
    assert len(late) == 1
    assert optimizer.round_s(late) > 10.0


def test_what_lies_far_behind_is_not_missed_for_its_time():
    # Steps of more than one sample are hopeless, and would take longer than there is time for.
    hopeless = lambda config: 20.0 if config.batch_size > 1 else law(config)  # noqa: E731
    space = [ThroughputConfig(batch_size=size, num_threads=1) for size in (1, 2, 64)]
    baseline = space[0]
    bench = MadeUpBench(seconds=hopeless, load_s=0.0, noise=0.001)
    optimizer = AdaptiveOptimizer(
        space,
        baseline,
        usable_cores=2,
        block_s=0.25,
        confirming=ConfirmingCost(start_s=1.0, measured_s=2.5),
    )
    for config in space:
        optimizer.tell(ShortTrial(config=config, outcome=bench.run(config, 1)))
    asked = optimizer.ask(now_s=bench.now_s, left_s=60.0)
    assert asked == Stop(complete=True)


def test_a_trial_is_asked_for_only_where_it_could_be_confirmed_too():
    bench = MadeUpBench()
    # A round takes 30 s at least: the start of two processes.
    dear = ConfirmingCost(start_s=15.0, measured_s=2.5)
    optimizer = optimizer_of(confirming=dear)
    assert not search(optimizer, bench, 30.0)
    assert [trial.config for trial in bench.trials] == [BASELINE]
    assert not search(optimizer, bench, 45.0)
    assert len(bench.trials) > 1
    assert bench.now_s <= 15.0


def test_what_never_ran_is_looked_at_before_it_is_an_answer():
    # Without workers, the law promises more of larger batches than they keep.
    slow = lambda config: 1.0 if config.batch_size > 4 else law(config)  # noqa: E731
    bench = MadeUpBench(seconds=slow)
    optimizer = optimizer_of()
    search(optimizer, bench, 1.0)
    assert not optimizer.standings()[0].was_measured
    visited = len(bench.trials)
    assert not check_best(optimizer, bench, bench.now_s)
    assert len(bench.trials) == visited
    while check_best(optimizer, bench, bench.now_s + 100.0):
        pass
    best = optimizer.standings()[0]
    assert best.was_measured
    assert best.config.batch_size <= 4


GPU_CONFIGS = [
    ThroughputConfig(batch_size=batch, num_workers=workers, num_threads=4)
    for batch in (64, 256, 1024)
    for workers in (0, 1, 2, 4, 8, 16)
]


class GpuBench(MadeUpBench):
    """A host that needs 8 ms for a step of any batch, a GPU that needs 1.6 at 64, 2 ms to load."""

    def __init__(self, **options):
        super().__init__(seconds=self.seconds, **options)

    def seconds(self, config):
        step_s = max(0.008 / config.batch_size, 0.0016 / 64)
        if not config.num_workers:
            return step_s + 0.002
        return max(step_s, 0.002 / config.num_workers)

    def _measure(self, config, num_blocks):
        found = super()._measure(config, num_blocks)
        step_s = 0.008 / config.batch_size * found.num_units
        return dataclasses.replace(
            found,
            lost_s=max(0.0, found.duration_s - step_s),
            wait_s=max(0.0, found.duration_s - step_s),
            device_share=0.0016 / 64 * found.num_units / found.duration_s,
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_host_that_keeps_a_gpu_waiting_is_tried_with_larger_batches_at_once(num_workers):
    baseline = ThroughputConfig(batch_size=64, num_workers=num_workers, num_threads=4)
    bench = GpuBench()
    optimizer = AdaptiveOptimizer(GPU_CONFIGS, baseline, usable_cores=16, block_s=0.25)
    search(optimizer, bench, math.inf, max_trials=2)
    best, *_ = optimizer.standings()
    assert best.config.batch_size > 64
    assert best.config.num_workers >= 8
    assert bench.seconds(best.config) <= 1.3 * min(map(bench.seconds, GPU_CONFIGS))
    # Two trials do not make sure of it.
    assert best.probability < 0.85


def test_a_loop_with_workers_that_never_waits_does_not_make_all_of_them_needed():
    baseline = ThroughputConfig(batch_size=64, num_workers=16, num_threads=4)
    bench = GpuBench()
    optimizer = AdaptiveOptimizer(GPU_CONFIGS, baseline, usable_cores=16, block_s=0.25)
    optimizer.tell(ShortTrial(config=baseline, outcome=bench.run(baseline, 4)))
    expected = {found.config: found.units_per_s for found in optimizer.standings()}
    half = dataclasses.replace(baseline, num_workers=8)
    assert expected[half] > 0.8 * expected[baseline]
