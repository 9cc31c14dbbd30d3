"""How good the search is: `python benchmarks/search.py`.

Replays truth tables (benchmarks/truth, recorded by benchmarks/record.py) with several methods, and
prints for each how often the answer is within 2 % of the best, at what cost. Costs are shares of
the exhaustive search: every configuration in a fresh process, measured for 4 s.

  auto         autotune's search, confirmation in fresh processes included
  auto, 5 %    the same, bounded to that share of the exhaustive search
  no bounds    auto without the law of bottlenecks
  long trials  auto with trials of 1.5 s at least, in place of 0.25 s
  race         is told which are within 5 % of the best, and measures only these, in turn
  others       a fresh process for each trial, measured for 4 s; the fastest trial wins
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from replay import RecordedRun, TruthTable, read_truth
from scipy.stats import binomtest
from search_methods import BLOCK_S, MEASURE_S, METHODS, SHARE, Answer, methods, slow_limit_s
from threadpoolctl import threadpool_limits

from autotune.optimizer.trial_cost import settling_s

TRUTH = Path(__file__).with_name("truth")
NEAR = 0.02
OURS = ("auto", "auto, 5 %", "no bounds", "long trials")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="append", help="of these tables only; repeatable")
    parser.add_argument("--method", action="append", choices=METHODS, help="the same of methods")
    parser.add_argument("--seeds", type=int, default=200, help="runs of each method on each table")
    parser.add_argument("--slow", type=float, help="slow loops down to steps of so many seconds")
    parser.add_argument("--workers", type=int, default=0, help="of the baseline (0)")
    parser.add_argument("--truth", type=Path, default=TRUTH, help="directory of the tables")
    args = parser.parse_args()
    paths = sorted(args.truth.glob("*.csv.gz"))
    names = args.table or [path.name.removesuffix(".csv.gz") for path in paths]
    limit = f"{slow_limit_s(args.slow):.0f} s" if args.slow else f"{100 * SHARE:.0f} %"
    print(
        f"{'table':12} {'method':12} {f'near at <= {limit}':>22} {'near in the end':>22} "
        f"{'regret: median':>15} {'p90':>7} {'cost: median':>13}"
    )
    single = functools.partial(threadpool_limits, 1)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), initializer=single) as pool:
        for name in names:
            path = args.truth / f"{name}.csv.gz"
            table = cached_truth(path, args.slow, args.workers)
            limit_s = (
                slow_limit_s(args.slow) if args.slow else SHARE * table.exhaustive_s(MEASURE_S)
            )
            ours = None
            for method in args.method or METHODS:
                work = functools.partial(run_seeds, path, args.slow, args.workers, method)
                parts = [range(n, args.seeds, 8) for n in range(8)]
                runs = [run for part in pool.map(work, parts) for run in part]
                show(table, method, runs, limit_s)
                if method == "auto":
                    ours = runs
                elif ours is not None and method not in OURS:
                    show_cost_of_the_same(table, runs, ours)


@functools.lru_cache
def cached_truth(path: Path, slow_s: float | None, num_workers: int) -> TruthTable:
    table = read_truth(path)
    if num_workers:
        first = table.baseline
        # As people write it, with torch's own prefetch factor.
        baseline = dataclasses.replace(
            first, num_workers=num_workers, prefetch_factor=2, persistent_workers=None
        )
        table = dataclasses.replace(table, baseline=baseline)
    return table if slow_s is None else slowed(table, slow_s)


def run_seeds(
    path: Path, slow_s: float | None, num_workers: int, method: str, seeds: Sequence[int]
) -> list[list[Answer]]:
    run = methods(slow_s)[method]
    return [run(cached_truth(path, slow_s, num_workers), seed) for seed in seeds]


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
            f"{statistics.median(a.num_tried for a in finals):.0f} trials"
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


def slowed(table: TruthTable, step_s: float) -> TruthTable:
    """The same space with steps so long that the baseline's takes `step_s`; starts stay."""
    runs = table.runs[table.baseline]
    steps_s = [run.duration_s.sum() / run.num_steps.sum() for run in runs]
    factor = step_s / float(np.median(steps_s))

    def slow(run: RecordedRun) -> RecordedRun:
        # A block of a quarter of a second becomes one of a single step, or of several. A step that
        # takes seconds is as long as so many recorded blocks, and as noisy as their mean.
        steps = np.maximum(1.0, np.round(run.num_steps / run.num_steps.mean()))
        per_step = run.duration_s / run.num_steps * factor
        blocks = max(1, min(len(per_step), round(float(per_step.mean()) / BLOCK_S)))
        per_step = np.array([np.roll(per_step, -n)[:blocks].mean() for n in range(len(per_step))])
        return dataclasses.replace(
            run,
            start_s=run.start_s + float(settling_s(per_step.mean())),
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


if __name__ == "__main__":
    main()
