"""Whether the search's constants are fitted to its tables: `python benchmarks/leave_one_out.py`.

Each constant is changed, one at a time, and searches bounded to a twentieth of the exhaustive cost
are replayed on all truth tables (see benchmarks/search.py). For each table, the value is then
chosen that is best on the other tables, and what it reaches on this one is printed: what the search
would do on a loop that nobody looked at when its constants were chosen.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from replay import read_truth
from search_methods import SHARE, auto
from threadpoolctl import threadpool_limits

from autotune.optimizer import adaptive
from autotune.optimizer.posterior import Hyperparameters

TRUTH = Path(__file__).with_name("truth")
NEAR = 0.02
AS_IT_IS = "as it is"
FACTORS = (0.5, 2.0)
# By name: what is set in `adaptive`, and by what first hyperparameters are multiplied.
Variant = tuple[Mapping[str, float], Mapping[str, float]]


def variants() -> dict[str, Variant]:
    """Each constant changed by itself."""
    found: dict[str, Variant] = {AS_IT_IS: ({}, {})}
    for tie in (0.0, 0.005, 0.01):
        found[f"a tie within {100 * tie:.1f} %"] = ({"_TIE": tie}, {})
    for sure in (0.8, 0.95):
        found[f"sure at {100 * sure:.0f} %"] = ({"_SURE": sure}, {})
    for field in dataclasses.fields(Hyperparameters):
        for factor in FACTORS:
            found[f"{field.name} x {factor}"] = ({}, {field.name: factor})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=60, help="searches of each table")
    seeds = range(parser.parse_args().seeds)
    paths = sorted(TRUTH.glob("*.csv.gz"))
    names = [path.name.removesuffix(".csv.gz") for path in paths]
    print(f"near at {100 * SHARE:.0f} % of the cost, in %")
    print(f"{'':20}" + "".join(f"{name:>12}" for name in names), flush=True)
    near: dict[str, list[float]] = {}
    single = functools.partial(threadpool_limits, 1)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), initializer=single) as pool:
        for name, variant in variants().items():
            near[name] = [
                statistics.mean(pool.map(functools.partial(is_near, path, variant), seeds))
                for path in paths
            ]
            show(name, near[name])
    chosen = [best_without(near, place) for place in range(len(paths))]
    show("by the others", [near[name][place] for place, name in enumerate(chosen)])
    for name, choice in zip(names, chosen, strict=True):
        print(f"  {name}: {choice}")


def is_near(path: Path, variant: Variant, seed: int) -> bool:
    """Whether one search ends within 2 % of the best."""
    constants, factors = variant
    before = {name: getattr(adaptive, name) for name in constants}
    for name, value in constants.items():
        setattr(adaptive, name, value)
    try:
        kind = functools.partial(_optimizer, factors=factors)
        table = cached_truth(path)
        return table.regret(auto(table, seed, kind=kind, budget=SHARE)[-1].config) <= NEAR
    finally:
        for name, value in before.items():
            setattr(adaptive, name, value)


def best_without(near: Mapping[str, Sequence[float]], place: int) -> str:
    """What does best on the tables but this one; what is as it is where nothing does better."""

    def others(name: str) -> float:
        return statistics.mean(share for n, share in enumerate(near[name]) if n != place)

    return max(near, key=others)


def show(name: str, shares: Sequence[float]) -> None:
    print(f"{name:20}" + "".join(f"{100 * share:12.0f}" for share in shares), flush=True)


cached_truth = functools.lru_cache(read_truth)


def _optimizer(
    *args: object, factors: Mapping[str, float], **options: object
) -> adaptive.AdaptiveOptimizer:
    first = Hyperparameters()
    changed = {name: getattr(first, name) * factor for name, factor in factors.items()}
    return adaptive.AdaptiveOptimizer(
        *args, hyperparameters=dataclasses.replace(first, **changed), **options
    )


if __name__ == "__main__":
    main()
