"""The adaptive search, on a bench that follows a known law."""

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest

from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.search.adaptive import AdaptiveSearch, Reading, Visit

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
        self.visits = []
        self._seconds = seconds
        self._load_s = load_s
        self._noise = noise
        self._fails = fails
        self._start_s = start_s
        self._random = random.Random(seed)

    def starts_at_once(self, config):
        return False

    def visit(self, config, num_blocks):
        self.now_s += self._start_s
        cause = self._fails(config)
        outcome = Failure(cause=cause, message="x") if cause else self._measure(config, num_blocks)
        self.visits.append(Visit(config=config, outcome=outcome))
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


def search_on(bench, configs=CONFIGS, **options):
    return AdaptiveSearch(configs, BASELINE, bench, usable_cores=2, block_s=0.25, **options)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_best_among_few_visits_and_is_rather_sure(seed):
    search = search_on(MadeUpBench(seed=seed))
    assert search.run(math.inf)
    best, *_ = search.standings()
    # The second best is 2.5 % slower.
    assert law(best.config) <= 1.03 * min(map(law, CONFIGS))
    assert best.probability > 0.6
    assert math.exp(best.log_ratio) == pytest.approx(law(BASELINE) / law(best.config), rel=0.1)
    assert search.num_visited < len(CONFIGS) / 2


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
    search = search_on(bench, space)
    assert search.run(math.inf)
    best, *_ = search.standings()
    assert best.config.gc == chosen
    assert best.was_measured
    assert bench.seconds(best.config) <= 1.03 * min(map(bench.seconds, space))
    assert {visit.config.gc for visit in bench.visits} == {"default", "frozen"}


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

    search = search_on(MadeUpBench(seconds=seconds, load_s=0.0005, seed=seed))
    search.run(120.0)
    best, *_ = search.standings()
    assert seconds(best.config) <= 1.03 * min(map(seconds, CONFIGS))


def test_where_nothing_changes_the_speed_it_stops_soon():
    bench = MadeUpBench(seconds=lambda config: 0.005, load_s=0.0)
    search = search_on(bench)
    assert search.run(math.inf)
    best, *_ = search.standings()
    # The best of many estimates is a lucky one; more cannot be asked of it.
    assert abs(best.log_ratio) < 4 * best.log_ratio_sd
    # All visits of a block each would take 48 s, and say less.
    assert bench.now_s < 120


def test_a_time_that_is_up_is_kept_and_is_told():
    bench = MadeUpBench()
    search = search_on(bench)
    assert not search.run(4.0)
    assert bench.now_s <= 5.0


def test_the_longer_training_goes_on_the_longer_it_looks():
    def taken_s(horizon_s):
        bench = MadeUpBench(noise=0.1)
        search_on(bench, horizon_s=horizon_s).run(math.inf)
        return bench.now_s

    assert taken_s(60.0) < taken_s(36_000.0)


def test_what_cannot_run_is_not_chosen_and_nothing_heavier_is_tried_after_memory_ran_out():
    tried = []

    def fails(config):
        tried.append(config)
        return FailureCause.OUT_OF_MEMORY if config.batch_size >= 32 else None

    search = search_on(MadeUpBench(fails=fails))
    search.run(math.inf)
    best, *_ = search.standings()
    assert best.config.batch_size < 32
    heavy = [config for config in tried if config.batch_size >= 32]
    for earlier, later in itertools.pairwise(heavy):
        assert not (
            later.batch_size >= earlier.batch_size
            and later.num_workers >= earlier.num_workers
            and later.num_prefetched >= earlier.num_prefetched
        )


def test_a_space_in_which_nothing_runs_ends():
    search = search_on(MadeUpBench(fails=lambda config: FailureCause.CRASHED))
    assert not search.run(math.inf)


def test_visits_are_counted_and_bounded():
    bench = MadeUpBench()
    told = []
    assert not search_on(bench).run(math.inf, max_visits=2, after_each=lambda: told.append(1))
    # The baseline comes first.
    assert bench.visits[0].config == BASELINE
    assert len(bench.visits) == 3
    assert len(told) == 2


def test_what_earlier_runs_showed_is_not_measured_again():
    first = MadeUpBench()
    search_on(first).run(math.inf)
    second = MadeUpBench()
    second.now_s = first.now_s
    search = search_on(second)
    search.learn(first.visits)
    assert search.run(math.inf)
    assert len(second.visits) <= 3


class Shifted:
    """A belief, but that the machine is twice as fast."""

    def __init__(self, belief):
        self.mean = belief.mean + math.log(2)
        self.covariance = belief.covariance


def test_what_an_earlier_search_believed_is_where_the_next_one_starts():
    first = search_on(MadeUpBench())
    first.run(math.inf)
    alone, guided = MadeUpBench(), MadeUpBench()
    search_on(alone).run(math.inf)
    search = search_on(guided, prior=Shifted(first.belief()))
    search.run(math.inf)
    best, *_ = search.standings()
    assert law(best.config) <= 1.03 * min(map(law, CONFIGS))
    assert len(guided.visits) <= len(alone.visits)
    # It is measured all the same.
    assert len(guided.visits) >= 2


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
    search = search_on(MadeUpBench())
    search.learn(
        [
            Visit(config=BASELINE, outcome=failure),
            Visit(config=BASELINE, outcome=reading),
            Visit(config=CONFIGS[0], outcome=failure),
        ]
    )
    able = [standing.config for standing in search.standings()]
    assert BASELINE in able
    assert CONFIGS[0] not in able


def test_an_earlier_search_that_saw_nothing_tells_nothing():
    search = search_on(MadeUpBench())
    failure = Failure(cause=FailureCause.CRASHED, message="x")
    search.learn([Visit(config=BASELINE, outcome=failure)])
    assert search.belief() is None


def test_where_nothing_runs_any_more_what_did_is_the_answer():
    calls = []

    def fails(config):
        calls.append(config)
        return FailureCause.CRASHED if len(calls) > 4 else None

    search = search_on(MadeUpBench(fails=fails))
    search.run(math.inf)
    best, *_ = search.standings()
    assert best.config in calls[:4]
    assert best.was_measured


def test_a_start_that_takes_long_is_charged_to_large_batches_as_it_is_to_small_ones():
    search = search_on(MadeUpBench(start_s=20.0))
    search.run(math.inf, max_visits=3)
    step_s = np.linspace(0.01, 1.0, len(search.configs))
    start_s = search._start_s(step_s)
    assert start_s[-1] - start_s[0] == pytest.approx(3 * 0.99)
    assert 12.0 < start_s[0] < 20.0


def test_what_never_ran_is_looked_at_before_it_is_an_answer():
    # Without workers, the law promises more of larger batches than they keep.
    slow = lambda config: 1.0 if config.batch_size > 4 else law(config)  # noqa: E731
    bench = MadeUpBench(seconds=slow)
    search = search_on(bench)
    search.run(1.0)
    assert not search.standings()[0].was_measured
    visited = len(bench.visits)
    assert not search.check_best(bench.now_s)
    assert len(bench.visits) == visited
    while search.check_best(bench.now_s + 100.0):
        pass
    best = search.standings()[0]
    assert best.was_measured
    assert best.config.batch_size <= 4
