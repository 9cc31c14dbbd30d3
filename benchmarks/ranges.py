"""How wide stated ranges are, and whether they hold: `python benchmarks/ranges.py`.

Replays searches on truth tables (benchmarks/truth), confirms the choice beside the baseline, and
trains with each for a minute, half a minute to five minutes later. Prints how often that fell into
the range of the confirmation, with what the search has learned of how runs differ and without, the
ranges' half widths, and how far off the stated throughput was.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from replay import ReplayBench, read_truth
from search_methods import (
    BLOCK_S,
    CONFIRM_S,
    CORES,
    MEASURE_S,
    ROUNDS,
    SHARE,
    confirm_round,
    fresh_run,
)
from threadpoolctl import threadpool_limits

from autotune.analysis.comparison import choose
from autotune.optimizer.adaptive import AdaptiveOptimizer
from autotune.tuning.search_loop import search

TRUTH = Path(__file__).with_name("truth")
TRAINED_S, LEAST_LATER_S, MOST_LATER_S = 60.0, 30.0, 300.0
# Of the time that a search may take, what is left for the confirmation.
CONFIRMATION_SHARE = 0.5
# Whether it held, half the width and the error of what was stated, on the scale of logarithms.
Case = tuple[bool, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=24, help="searches of each table")
    seeds = range(parser.parse_args().seeds)
    print(f"{'table':12} {'':8} {'held':>6} {'half width':>11} {'off by':>7}")
    single = functools.partial(threadpool_limits, 1)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), initializer=single) as pool:
        for path in sorted(TRUTH.glob("*.csv.gz")):
            found = list(pool.map(functools.partial(cases, path), seeds))
            for which, name in enumerate(("guessed", "learned")):
                show(path, name, [case for pair in found for case in pair[which]])


def cases(path: Path, seed: int) -> tuple[list[Case], list[Case]]:
    """One search: what was stated with a guess of how runs differ, and with what was learned."""
    table = read_truth(path)
    bench = ReplayBench(table, seed)
    fresh_run(bench, table.baseline, CONFIRM_S)
    bench.now_s += table.fresh_start_s
    optimizer = AdaptiveOptimizer(
        list(table.runs), table.baseline, usable_cores=CORES, block_s=BLOCK_S, seed=seed
    )
    search(optimizer, bench, CONFIRMATION_SHARE * SHARE * table.exhaustive_s(MEASURE_S))
    rates: dict = {}
    configs = (table.baseline, *optimizer.to_confirm({table.baseline})[:1])
    for _ in range(ROUNDS):
        confirm_round(bench, configs, rates)
    stated = [
        choose(rates, table.baseline, spread=spread) for spread in (None, optimizer.run_spread())
    ]
    later = np.random.default_rng(seed)
    found: tuple[list[Case], list[Case]] = [], []
    for config in configs:
        bench.now_s += later.uniform(LEAST_LATER_S, MOST_LATER_S)
        trained = fresh_run(bench, config, TRAINED_S)
        for choice, told in zip(stated, found, strict=True):
            rate = choice.rates[config]
            told.append(
                (
                    rate.low <= trained <= rate.high,
                    math.log(rate.high / rate.low) / 2,
                    math.log(trained / rate.mean),
                )
            )
    return found


def show(path: Path, name: str, found: Sequence[Case]) -> None:
    held = statistics.mean(case[0] for case in found)
    width = statistics.median(case[1] for case in found)
    error = math.sqrt(statistics.mean(case[2] ** 2 for case in found))
    print(
        f"{path.name.removesuffix('.csv.gz'):12} {name:8} {100 * held:4.0f} % {100 * width:9.1f} % "
        f"{100 * error:5.1f} %",
        flush=True,
    )


if __name__ == "__main__":
    main()
