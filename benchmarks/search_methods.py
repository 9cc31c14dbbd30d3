"""The methods that benchmarks/search.py compares, each on a replayed table.

A method gives what it would answer after each of its steps, with what they cost. The others start
a fresh process for each trial, measure it for 4 s, and answer with the fastest so far.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from replay import ReplayBench, TruthTable

from autotune.analysis.comparison import choose
from autotune.config import ThroughputConfig
from autotune.intervals import INDIFFERENCE
from autotune.optimizer.adaptive import MOST_CHECKS, AdaptiveOptimizer, Request, Stop
from autotune.optimizer.trial_cost import LONGEST_UPDATE_S, ConfirmingCost
from autotune.study.definition import EXPLANATION_S, EXPLANATION_SHARE, MOST_CANDIDATES
from autotune.tuning.confirmation import LARGEST_SHARE
from autotune.tuning.search_loop import check_best, search

MEASURE_S, BLOCK_S, CONFIRM_S = 4.0, 0.25, 2.5
# Of a trial that may be pruned.
PARTS_S = (1.0, 1.0, 2.0)
CORES = 2.0
# Of the exhaustive search, what a search should cost at most.
SHARE = 0.05
# What a search of a slow loop may take, and one of a loop with steps of more than so many seconds.
SLOW_LIMIT_S, VERY_SLOW_LIMIT_S, VERY_SLOW_S = 600.0, 1800.0, 10.0
# A race is run among those within so much of the best, in so many rounds of so many blocks.
RACED, RACE_ROUNDS, RACE_BLOCKS = 0.05, 20, 2
ROUNDS = 3
# What starting each of several fresh processes at once takes, in starts of one alone.
TOGETHER = 0.6
# Timing step and loader by themselves takes so long, or so many steps; where these are long, it is
# done once, if there is time for it.
PROBE_S, PROBE_STEPS = 1.0, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a method would answer after so much time.

    Attributes:
        cost_s: Seconds spent.
        config: The answer.
        claim: The probability, as stated, that it is within 2 % of the best; None if not stated.
        searched: What the search alone would have answered.
    """

    cost_s: float
    config: ThroughputConfig
    claim: float | None = None
    searched: ThroughputConfig | None = None
    search_s: float | None = None
    num_tried: int = 0


Method = Callable[[TruthTable, int], list[Answer]]


def auto(
    table: TruthTable,
    seed: int,
    kind: type[AdaptiveOptimizer] = AdaptiveOptimizer,
    budget: float = math.inf,
    limit_s: float = math.inf,
) -> list[Answer]:
    """autotune: baseline, search, confirmation; the budget is a share of the exhaustive search.

    `limit_s` is one in seconds.
    """
    bench = ReplayBench(table, seed)
    baseline_s = confirmed_s(table, table.baseline)
    fresh_run(bench, table.baseline, baseline_s)
    # The host starts once, and is forked from then on.
    bench.now_s += table.fresh_start_s
    optimizer = kind(
        list(table.runs),
        table.baseline,
        usable_cores=CORES,
        block_s=BLOCK_S,
        confirming=ConfirmingCost(start_s=table.fresh_start_s, measured_s=CONFIRM_S),
        seed=seed,
    )
    end_s = min(budget * table.exhaustive_s(MEASURE_S), limit_s)
    # As `SearchPhase` does.
    run_s = table.fresh_s(table.baseline, baseline_s) + PROBE_S
    reserved_s = min((MOST_CANDIDATES + 1) * ROUNDS * run_s, LARGEST_SHARE * end_s)
    reserved_s += min(EXPLANATION_S, EXPLANATION_SHARE * end_s)
    search(optimizer, bench, end_s, reserved_s=reserved_s)
    for _ in range(MOST_CHECKS):
        if not check_best(optimizer, bench, end_s):
            break
    standings = optimizer.standings()
    search_s = bench.now_s
    rates: dict[ThroughputConfig, list[float]] = {}
    chosen = table.baseline
    found = optimizer.to_confirm({table.baseline}, left_s=end_s - bench.now_s)
    for number in range(2 * ROUNDS if found else 0):
        before_s = bench.now_s
        confirm_round(bench, (table.baseline, *found), rates, end_s)
        choice = choose(rates, table.baseline)
        speedup = choice.speedup
        chosen = choice.best if speedup.significant else table.baseline
        undecided = speedup.ratio > 1 + INDIFFERENCE and not speedup.significant
        if number + 1 >= ROUNDS and not undecided:
            break
        if 2 * bench.now_s - before_s > end_s:
            break
    return [
        Answer(
            cost_s=bench.now_s,
            config=chosen,
            claim=standings[0].probability,
            searched=standings[0].config,
            search_s=search_s,
            num_tried=optimizer.num_tried,
        )
    ]


def confirm_round(
    bench: ReplayBench,
    configs: Sequence[ThroughputConfig],
    rates: dict[ThroughputConfig, list[float]],
    end_s: float = math.inf,
) -> None:
    """A fresh process for each, measured in turn."""
    bench.now_s += TOGETHER * len(configs) * bench.table.fresh_start_s
    runs = {config: bench.start(config) for config in configs}
    units = dict.fromkeys(configs, 0.0)
    seconds = dict.fromkeys(configs, 0.0)
    steps_s = dict.fromkeys(configs, 0.0)
    wanted_s = {config: confirmed_s(bench.table, config) for config in configs}
    while waiting := [config for config in configs if seconds[config] < wanted_s[config]]:
        for config in waiting:
            reading = runs[config].measure(1)
            units[config] += reading.num_units
            seconds[config] += reading.duration_s
            steps_s[config] = reading.duration_s / reading.num_steps
    for config in configs:
        probe_s = PROBE_STEPS * steps_s[config]
        if steps_s[config] <= PROBE_S:
            bench.now_s += PROBE_S
        elif config not in rates and bench.now_s + probe_s <= end_s:
            bench.now_s += probe_s
        rates.setdefault(config, []).append(units[config] / seconds[config])


def confirmed_s(table: TruthTable, config: ThroughputConfig) -> float:
    """How long a run of the confirmation is measured: an optimizer step at least, as a rule."""
    update_s = table.step_s(config) * config.gradient_accumulation_steps
    return max(CONFIRM_S, min(LONGEST_UPDATE_S, update_s))


def fresh_run(bench: ReplayBench, config: ThroughputConfig, seconds: float = MEASURE_S) -> float:
    """Units per second of a fresh process, as the peers measure."""
    reading = bench.start(config, fresh=True).measure_for(seconds)
    return reading.num_units / reading.duration_s


def fastest_of(
    table: TruthTable, seed: int, configs: Iterator[ThroughputConfig], told: Callable[[float], None]
) -> list[Answer]:
    """Measure one after another; the fastest so far is the answer."""
    bench = ReplayBench(table, seed)
    best, answer, answers = 0.0, table.baseline, []
    for config in configs:
        rate = fresh_run(bench, config)
        told(rate)
        if rate > best:
            best, answer = rate, config
        answers.append(Answer(cost_s=bench.now_s, config=answer))
    return answers


def exhaustive(table: TruthTable, seed: int) -> list[Answer]:
    """Every configuration once, in random order."""
    order = list(table.runs)
    random.Random(seed).shuffle(order)
    return fastest_of(table, seed, iter(order), lambda _: None)


def race(table: TruthTable, seed: int) -> list[Answer]:
    """What no method can be expected to surpass by much, since it is told most of the answer.

    It knows which configurations are within 5 % of the best, runs forked trials of these alone, one
    after another in random order, and answers with the best mean so far.
    """
    bench = ReplayBench(table, seed)
    fresh_run(bench, table.baseline, CONFIRM_S)
    bench.now_s += table.fresh_start_s
    raced = [config for config in table.runs if table.regret(config) <= RACED]
    logs: dict[ThroughputConfig, list[float]] = {config: [] for config in raced}
    shuffle = random.Random(seed)
    answers = []
    for _ in range(RACE_ROUNDS):
        shuffle.shuffle(raced)
        for config in raced:
            reading = bench.start(config).measure(RACE_BLOCKS)
            logs[config].append(math.log(reading.num_units / reading.duration_s))
            found = [other for other in raced if logs[other]]
            best = max(found, key=lambda other: statistics.mean(logs[other]))
            answers.append(Answer(cost_s=bench.now_s, config=best))
    return answers


def coordinates(table: TruthTable, seed: int) -> list[Answer]:
    """Coordinate descent from the baseline: one axis after another, until nothing improves."""
    bench = ReplayBench(table, seed)
    answers: list[Answer] = []
    measured: dict[ThroughputConfig, float] = {}

    def rate(config: ThroughputConfig) -> float:
        if config not in measured:
            measured[config] = fresh_run(bench, config)
        return measured[config]

    current = table.baseline
    shuffle = random.Random(seed)
    improved = True
    while improved:
        improved = False
        names = ["batch_size", "num_workers", "prefetch_factor", "num_threads"]
        shuffle.shuffle(names)
        for name in names:
            line = [c for c in table.runs if differs_only(c, current, name)]
            best = max([current, *line], key=rate)
            improved |= best != current
            current = best
            answers.append(Answer(cost_s=bench.now_s, config=current))
    return answers


def differs_only(config: ThroughputConfig, other: ThroughputConfig, name: str) -> bool:
    free = {name, "gradient_accumulation_steps", "persistent_workers"}
    if name == "num_workers" and 0 in (config.num_workers, other.num_workers):
        free.add("prefetch_factor")
        if config.num_workers and config.prefetch_factor != 2:
            return False
    ours, theirs = config.to_dict(), other.to_dict()
    return all(ours[key] == theirs[key] for key in ours if key not in free) and config != other


def optuna_search(
    make: Callable[[int], optuna.samplers.BaseSampler],
    num_trials: int,
    table: TruthTable,
    seed: int,
    make_pruner: Callable[[], optuna.pruners.BasePruner] | None = None,
) -> list[Answer]:
    """Optuna as people use it; with a pruner, rates are reported after 1, 2 and 4 s."""
    prunes = make_pruner is not None
    pruner = make_pruner() if make_pruner else optuna.pruners.NopPruner()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bench = ReplayBench(table, seed)
    axes = {
        name: sorted({c.to_dict()[name] or 0 for c in table.runs if c.to_dict()[name] is not None})
        for name in ("batch_size", "num_workers", "prefetch_factor", "num_threads")
    }
    by_values = {tuple(c.to_dict()[name] or 0 for name in axes): c for c in table.runs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=make(seed), pruner=pruner, direction="maximize")
        best, answer, answers = 0.0, table.baseline, []
        for _ in range(num_trials):
            trial = study.ask()
            values = []
            for name, choices in axes.items():
                if name == "prefetch_factor" and not values[1]:
                    values.append(0)
                    continue
                values.append(choices[trial.suggest_int(name, 0, len(choices) - 1)])
            config = by_values[tuple(values)]
            run = bench.start(config, fresh=True)
            units = seconds = 0.0
            pruned = False
            for step, part_s in enumerate(PARTS_S if prunes else (MEASURE_S,)):
                reading = run.measure_for(part_s)
                units, seconds = units + reading.num_units, seconds + reading.duration_s
                trial.report(units / seconds, 2**step)
                if prunes and trial.should_prune():
                    pruned = True
                    break
            if pruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, units / seconds)
                if units / seconds > best:
                    best, answer = units / seconds, config
            answers.append(Answer(cost_s=bench.now_s, config=answer))
    return answers


class WithoutBounds(AdaptiveOptimizer):
    """Nothing but resemblance tells of what has not run."""

    def _bottleneck_model(self) -> None:
        return None


class LongTrials(AdaptiveOptimizer):
    """Every trial has at least six blocks, as those of the other samplers have at most."""

    def ask(self, **times: Any) -> Request | Stop:  # noqa: ANN401
        """See `AdaptiveOptimizer`."""
        asked = super().ask(**times)
        if isinstance(asked, Stop):
            return asked
        return dataclasses.replace(asked, num_blocks=max(asked.num_blocks, 6))


METHODS: dict[str, Method] = {
    "auto": auto,
    "auto, 5 %": functools.partial(auto, budget=SHARE),
    "no bounds": functools.partial(auto, kind=WithoutBounds),
    "long trials": functools.partial(auto, kind=LongTrials),
    "race": race,
    "random": functools.partial(
        optuna_search, lambda s: optuna.samplers.RandomSampler(seed=s), 120
    ),
    "coordinates": coordinates,
    "tpe": functools.partial(optuna_search, lambda s: optuna.samplers.TPESampler(seed=s), 120),
    "gp": functools.partial(optuna_search, lambda s: optuna.samplers.GPSampler(seed=s), 40),
    "asha": functools.partial(
        optuna_search,
        lambda s: optuna.samplers.RandomSampler(seed=s),
        208,
        make_pruner=lambda: optuna.pruners.SuccessiveHalvingPruner(1, 2),
    ),
    "exhaustive": exhaustive,
}


def slow_limit_s(step_s: float) -> float:
    """What a search of a loop with such steps may take."""
    return VERY_SLOW_LIMIT_S if step_s > VERY_SLOW_S else SLOW_LIMIT_S


def methods(slow_s: float | None) -> dict[str, Method]:
    """By name; with slow steps, autotune's own have a limit."""
    if slow_s is None:
        return METHODS
    limit_s = slow_limit_s(slow_s)
    return METHODS | {
        "auto": functools.partial(auto, limit_s=limit_s),
        "no bounds": functools.partial(auto, kind=WithoutBounds, limit_s=limit_s),
    }
