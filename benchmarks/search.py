"""How good the search is: `python benchmarks/search.py`.

Replays truth tables (benchmarks/truth, recorded by benchmarks/record.py) with several methods, and
prints for each how often the answer is within 2 % of the best, at what cost. Costs are shares of
the exhaustive search: every configuration in a fresh process, measured for 4 s.

  auto         autotune's search, confirmation in fresh processes included
  no …         the same with a part left out
  others       a fresh process for each trial, measured for 4 s; the fastest trial wins
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import math
import os
import random
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from autotune.config import ThroughputConfig
from autotune.search.adaptive import AdaptiveSearch
from autotune.search.confirmation import INDIFFERENCE, choose
from autotune.search.replay import RecordedRun, ReplayBench, TruthTable, read_truth

TRUTH = Path(__file__).with_name("truth")
MEASURE_S, BLOCK_S, CONFIRM_S = 4.0, 0.25, 2.5
CORES = 2.0
NEAR = 0.02
SHARE = 0.05
ROUNDS = 3
# What starting two fresh processes at once takes, in starts of one.
TOGETHER = 1.2
# What timing step and loader by themselves takes.
PROBE_S = 1.0
# What a search of a slow loop may take.
SLOW_LIMIT_S = 600.0
# Uncounted steps at the start of a run whose steps take seconds.
SETTLE_STEPS = 2.0


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
    num_visited: int = 0


Method = Callable[[TruthTable, int], list[Answer]]


def auto(
    table: TruthTable,
    seed: int,
    kind: type[AdaptiveSearch] = AdaptiveSearch,
    budget: float = math.inf,
    limit_s: float = math.inf,
) -> list[Answer]:
    """autotune: baseline, search, confirmation; the budget is a share of the exhaustive search.

    `limit_s` is one in seconds.
    """
    bench = ReplayBench(table, seed)
    fresh_run(bench, table.baseline, CONFIRM_S)
    # The host starts once, and is forked from then on.
    bench.now_s += table.fresh_start_s
    search = kind(
        list(table.runs),
        table.baseline,
        bench,
        usable_cores=CORES,
        block_s=BLOCK_S,
        seed=seed,
    )
    run_s = table.fresh_s(table.baseline, CONFIRM_S)
    search.run(min(budget * table.exhaustive_s(MEASURE_S), limit_s) - 2.2 * ROUNDS * run_s)
    leader, *_ = search.standings()
    search_s = bench.now_s
    rates: dict[ThroughputConfig, list[float]] = {}
    chosen = table.baseline
    for number in range(2 * ROUNDS if leader.config != table.baseline else 0):
        confirm_round(bench, (table.baseline, leader.config), rates)
        speedup = choose(rates, table.baseline).speedup
        chosen = leader.config if speedup.significant else table.baseline
        undecided = speedup.ratio > 1 + INDIFFERENCE and not speedup.significant
        if number + 1 >= ROUNDS and (not undecided or budget < math.inf):
            break
    return [
        Answer(
            cost_s=bench.now_s,
            config=chosen,
            claim=leader.probability,
            searched=leader.config,
            search_s=search_s,
            num_visited=search.num_visited,
        )
    ]


def confirm_round(
    bench: ReplayBench,
    configs: Sequence[ThroughputConfig],
    rates: dict[ThroughputConfig, list[float]],
) -> None:
    """A fresh process for each, measured in turn."""
    bench.now_s += TOGETHER * bench.table.fresh_start_s
    runs = {config: bench.open(config) for config in configs}
    units = dict.fromkeys(configs, 0.0)
    seconds = dict.fromkeys(configs, 0.0)
    while min(seconds.values()) < CONFIRM_S:
        for config, run in runs.items():
            reading = bench.measure(run, 1)
            units[config] += reading.num_units
            seconds[config] += reading.duration_s
    bench.now_s += PROBE_S * len(configs)
    for config, run in runs.items():
        rates.setdefault(config, []).append(units[config] / seconds[config])
        bench.close(run)


def fresh_run(bench: ReplayBench, config: ThroughputConfig, seconds: float = MEASURE_S) -> float:
    """Units per second of a fresh process, as the peers measure."""
    run = bench.open(config, fresh=True)
    reading = bench.measure_for(run, seconds)
    bench.close(run)
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
    make_pruner: Callable[[], optuna.pruners.BasePruner] = optuna.pruners.NopPruner,
) -> list[Answer]:
    """Optuna as people use it; with a pruner, rates are reported after 1, 2 and 4 s."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bench = ReplayBench(table, seed)
    axes = {
        name: sorted({c.to_dict()[name] or 0 for c in table.runs if c.to_dict()[name] is not None})
        for name in ("batch_size", "num_workers", "prefetch_factor", "num_threads")
    }
    by_values = {tuple(c.to_dict()[name] or 0 for name in axes): c for c in table.runs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=make(seed), pruner=make_pruner(), direction="maximize")
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
            run = bench.open(config, fresh=True)
            units = seconds = 0.0
            pruned = False
            for step, part_s in enumerate((1.0, 1.0, 2.0)):
                reading = bench.measure_for(run, part_s)
                units, seconds = units + reading.num_units, seconds + reading.duration_s
                trial.report(units / seconds, 2**step)
                if trial.should_prune():
                    pruned = True
                    break
            bench.close(run)
            if pruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, units / seconds)
                if units / seconds > best:
                    best, answer = units / seconds, config
            answers.append(Answer(cost_s=bench.now_s, config=answer))
    return answers


def slowed(table: TruthTable, step_s: float) -> TruthTable:
    """The same space with steps so long that the baseline's takes `step_s`; starts stay."""
    runs = table.runs[table.baseline]
    steps_s = [run.duration_s.sum() / run.num_steps.sum() for run in runs]
    factor = step_s / float(np.median(steps_s))

    def slow(run: RecordedRun) -> RecordedRun:
        # A block of a quarter of a second becomes one of a single step, or of several.
        steps = np.maximum(1.0, np.round(run.num_steps / run.num_steps.mean()))
        per_step = run.duration_s / run.num_steps * factor
        return dataclasses.replace(
            run,
            start_s=run.start_s + SETTLE_STEPS * float(per_step.mean()),
            duration_s=per_step * steps,
            num_units=run.num_units / run.num_steps * steps,
            wait_s=run.wait_s / run.num_steps * steps * factor,
            wait_cpu_s=run.wait_cpu_s / run.num_steps * steps * factor,
            num_steps=steps,
        )

    return dataclasses.replace(
        table,
        runs={config: [slow(run) for run in found] for config, found in table.runs.items()},
        rates={config: rate / factor for config, rate in table.rates.items()},
    )


class WithoutBounds(AdaptiveSearch):
    """Nothing but resemblance tells of what has not run."""

    def _law(self) -> None:
        return None


class WithoutEarlyStopping(AdaptiveSearch):
    """Every visit lasts as long as the longest of the other samplers."""

    def _visit(self, index: int, num_blocks: int) -> None:
        super()._visit(index, max(num_blocks, 6))


class WithoutRace(AdaptiveSearch):
    """A run is measured once, and ended."""

    def _measure(self, number: int, num_blocks: int) -> None:
        super()._measure(number, num_blocks)
        if number in self._open_runs():
            self._end(number)


METHODS: dict[str, Method] = {
    "auto": auto,
    "auto, 5 %": functools.partial(auto, budget=SHARE),
    "no bounds": functools.partial(auto, kind=WithoutBounds),
    "no stopping": functools.partial(auto, kind=WithoutEarlyStopping),
    "no race": functools.partial(auto, kind=WithoutRace),
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
SLOW_METHODS: dict[str, Method] = {
    **METHODS,
    "auto": functools.partial(auto, limit_s=SLOW_LIMIT_S),
    **{
        name: functools.partial(auto, kind=kind, limit_s=SLOW_LIMIT_S)
        for name, kind in (("no bounds", WithoutBounds), ("no race", WithoutRace))
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="append", help="of these tables only; repeatable")
    parser.add_argument("--method", action="append", choices=METHODS, help="the same of methods")
    parser.add_argument("--seeds", type=int, default=200, help="runs of each method on each table")
    parser.add_argument("--slow", type=float, help="slow loops down to steps of so many seconds")
    parser.add_argument("--truth", type=Path, default=TRUTH, help="directory of the tables")
    args = parser.parse_args()
    paths = sorted(args.truth.glob("*.csv.gz"))
    names = args.table or [path.name.removesuffix(".csv.gz") for path in paths]
    methods = args.method or (SLOW_METHODS if args.slow else METHODS)
    limit = f"{SLOW_LIMIT_S:.0f} s" if args.slow else f"{100 * SHARE:.0f} %"
    print(
        f"{'table':12} {'method':12} {f'near at <= {limit}':>22} {'near in the end':>22} "
        f"{'regret: median':>15} {'p90':>7} {'cost: median':>13}"
    )
    single = functools.partial(threadpool_limits, 1)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), initializer=single) as pool:
        for name in names:
            path = args.truth / f"{name}.csv.gz"
            table = cached_truth(path, args.slow)
            limit_s = SLOW_LIMIT_S if args.slow else SHARE * table.exhaustive_s(MEASURE_S)
            ours = None
            for method in methods:
                work = functools.partial(run_seeds, path, args.slow, method)
                parts = [range(n, args.seeds, 8) for n in range(8)]
                runs = [run for part in pool.map(work, parts) for run in part]
                show(table, method, runs, limit_s)
                if method == "auto":
                    ours = runs
                elif ours is not None and not method.startswith(("auto", "no ")):
                    show_cost_of_the_same(table, runs, ours)


@functools.lru_cache
def cached_truth(path: Path, slow_s: float | None = None) -> TruthTable:
    table = read_truth(path)
    return table if slow_s is None else slowed(table, slow_s)


def run_seeds(
    path: Path, slow_s: float | None, method: str, seeds: Sequence[int]
) -> list[list[Answer]]:
    run = (METHODS if slow_s is None else SLOW_METHODS)[method]
    return [run(cached_truth(path, slow_s), seed) for seed in seeds]


def show_cost_of_the_same(
    table: TruthTable, runs: Sequence[Sequence[Answer]], ours: Sequence[Sequence[Answer]]
) -> None:
    """What another method costs until it is as often near the best as ours is in the end."""
    wanted = statistics.mean(table.regret(run[-1].config) <= NEAR for run in ours)
    our_cost_s = statistics.median(run[-1].cost_s for run in ours)
    costs_s = [answer.cost_s for run in runs for answer in run]
    for cost_s in np.quantile(costs_s, np.linspace(0, 1, 300)):
        near = [table.regret(answer_at(run, cost_s, table).config) <= NEAR for run in runs]
        if statistics.mean(near) >= wanted:
            print(f"    as often near as auto after {cost_s / our_cost_s:.1f} times its cost")
            return
    print("    never as often near as auto")


def answer_at(run: Sequence[Answer], cost_s: float, table: TruthTable) -> Answer:
    """What a method would answer after so many seconds; the baseline at first."""
    found = [answer for answer in run if answer.cost_s <= cost_s]
    return found[-1] if found else Answer(cost_s=0.0, config=table.baseline)


def show(table: TruthTable, method: str, runs: Sequence[Sequence[Answer]], limit_s: float) -> None:
    whole_s = table.exhaustive_s(MEASURE_S)
    early = [table.regret(answer_at(run, limit_s, table).config) <= NEAR for run in runs]
    regrets = [table.regret(run[-1].config) for run in runs]
    costs = [run[-1].cost_s / whole_s for run in runs]
    print(
        f"{table.name:12} {method:12} {share(sum(early), len(runs)):>22} "
        f"{share(sum(r <= NEAR for r in regrets), len(runs)):>22} "
        f"{100 * statistics.median(regrets):13.1f} % {100 * np.quantile(regrets, 0.9):5.1f} % "
        f"{100 * statistics.median(costs):11.1f} %",
        flush=True,
    )
    if runs[0][-1].claim is not None:
        finals = [run[-1] for run in runs]
        alone = [table.regret(a.searched) for a in finals if a.searched]
        print(
            f"    search alone: near in {share(sum(r <= NEAR for r in alone), len(alone))}, median "
            f"{100 * statistics.median(alone):.1f} %, p90 {100 * np.quantile(alone, 0.9):.1f} %; "
            f"{statistics.median(a.search_s for a in finals):.0f} s of {whole_s:.0f} s, "
            f"{statistics.median(a.num_visited for a in finals):.0f} visits"
        )
        for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 0.9), (0.9, 1.01)):
            claims = [a for a in finals if low <= a.claim < high]
            if claims:
                right = sum(table.regret(a.searched) <= NEAR for a in claims)
                print(f"    claimed {low:.1f} to {high:.1f}: right in {share(right, len(claims))}")


def share(count: int, total: int) -> str:
    """A share with its 95 % interval (Wilson)."""
    found = binomtest(count, total).proportion_ci(method="wilson")
    return f"{100 * count / total:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"


if __name__ == "__main__":
    main()
