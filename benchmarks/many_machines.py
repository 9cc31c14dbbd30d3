"""How much sooner many machines find the answer: `python benchmarks/many_machines.py`.

Replays truth tables (benchmarks/truth) with one study that several machines search together: each
measures the baseline by itself, sees the trials that the others have ended, and asks for none that
they run. Machines of a kind differ by 5 % in speed (standard deviation), and drift by themselves.

Prints for each number of machines the median time until the first of them stops searching and
until the last does ("search"; baselines included), the efficiency (the time that one machine takes
÷ (number x time)), the share of the answers within 2 % of the best, the number of trials, and that
of trials of a configuration of which another machine ran one at the same time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import heapq
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from replay import ReplayBench
from search import NEAR, TRUTH, cached_truth
from search_methods import BLOCK_S, CONFIRM_S, CORES
from threadpoolctl import threadpool_limits

from autotune.config import ThroughputConfig
from autotune.measurement import Failure
from autotune.optimizer.adaptive import AdaptiveOptimizer, Reading, ShortTrial, Stop
from autotune.tuning.search_loop import LOOK_EVERY_S

NUMBERS = (1, 2, 4, 8, 32)
# Of the logarithm of a machine's speed, among machines of one kind.
SPEED_SD = 0.05
# As autotune takes times of different machines apart: see autotune/study/relative.py.
APART_S = 1e9


@dataclasses.dataclass(slots=True)
class Done:
    """A trial, as it was stored."""

    machine: int
    config: ThroughputConfig
    began_s: float
    ended_s: float
    outcome: Reading | Failure


class Machine:
    """One machine of a replayed study.

    Args:
        path: The truth table.
        number: Of the machine.
        seed: Of the study.
    """

    def __init__(self, path: Path, number: int, seed: int) -> None:
        table = cached_truth(path, None, 0)
        random = np.random.default_rng((seed, number))
        self.number = number
        self.speed = float(np.exp(random.normal(0.0, SPEED_SD)))
        self.bench = ReplayBench(table, int(random.integers(2**31)))
        reading = self.bench.start(table.baseline, fresh=True).measure_for(CONFIRM_S)
        self.baseline = self.speed * reading.num_units / reading.duration_s
        self.bench.now_s += table.fresh_start_s
        self.optimizer = AdaptiveOptimizer(
            list(table.runs),
            table.baseline,
            usable_cores=CORES,
            block_s=BLOCK_S,
            seed=seed,
        )
        self.known: set[int] = set()

    def learn(self, done: Sequence[Done]) -> None:
        """Take the trials into account that have ended on others."""
        new = [
            number
            for number, trial in enumerate(done)
            if trial.ended_s <= self.bench.now_s and number not in self.known
        ]
        self.known.update(new)
        self.optimizer.learn(
            ShortTrial(config=done[number].config, outcome=done[number].outcome) for number in new
        )

    def run(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """A trial, as fast as this machine is."""
        outcome = self.bench.run(config, num_blocks)
        if isinstance(outcome, Failure):
            return outcome
        return dataclasses.replace(outcome, num_units=outcome.num_units * self.speed)


def seen_from(viewer: Machine, trial: Done, other: Machine) -> Done:
    """A trial of another machine in proportion to the baselines of both."""
    if isinstance(trial.outcome, Failure) or viewer.number == other.number:
        return trial
    factor = viewer.baseline / other.baseline
    outcome = dataclasses.replace(
        trial.outcome,
        num_units=trial.outcome.num_units * factor,
        at_s=trial.outcome.at_s - APART_S * (1 + other.number),
    )
    return dataclasses.replace(trial, outcome=outcome)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What came of a study."""

    first_s: float
    last_s: float
    is_near: bool
    num_trials: int
    num_repeated: int


def run_study(path: Path, number: int, seed: int) -> Found:
    """Machines that search one study together."""
    machines = [Machine(path, place, seed) for place in range(number)]
    done: list[Done] = []
    queue = [(machine.bench.now_s, machine.number) for machine in machines]
    heapq.heapify(queue)
    stopped: list[float] = []
    while queue:
        now_s, place = heapq.heappop(queue)
        machine = machines[place]
        machine.learn([seen_from(machine, trial, machines[trial.machine]) for trial in done])
        running = [trial for trial in done if trial.began_s <= now_s < trial.ended_s]
        pending = {trial.config for trial in running}
        asked = machine.optimizer.ask(now_s=now_s, pending=pending)
        if isinstance(asked, Stop):
            if running:
                # What the others find may make more of it worth measuring.
                next_s = min(trial.ended_s for trial in running)
                machine.bench.now_s = max(next_s, now_s + LOOK_EVERY_S)
                heapq.heappush(queue, (machine.bench.now_s, place))
            else:
                stopped.append(now_s)
            continue
        outcome = machine.run(asked.config, asked.num_blocks)
        machine.optimizer.tell(ShortTrial(config=asked.config, outcome=outcome))
        machine.known.add(len(done))
        done.append(Done(place, asked.config, now_s, machine.bench.now_s, outcome))
        heapq.heappush(queue, (machine.bench.now_s, place))
    last = machines[0]
    last.bench.now_s = max(stopped)
    last.learn([seen_from(last, trial, machines[trial.machine]) for trial in done])
    best = last.optimizer.standings()[0].config
    table = last.bench.table
    at_once = [
        one
        for one in done
        if any(
            other is not one
            and other.config == one.config
            and other.began_s < one.ended_s
            and one.began_s < other.ended_s
            for other in done
        )
    ]
    return Found(
        first_s=min(stopped),
        last_s=max(stopped),
        is_near=table.regret(best) <= NEAR,
        num_trials=len(done),
        num_repeated=len(at_once),
    )


def run_seeds(path: Path, number: int, seeds: Sequence[int]) -> list[Found]:
    return [run_study(path, number, seed) for seed in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="append", help="of these tables only; repeatable")
    parser.add_argument("--seeds", type=int, default=24, help="studies for each number (24)")
    parser.add_argument("--machines", type=int, action="append", help="numbers; repeatable")
    parser.add_argument("--truth", type=Path, default=TRUTH, help="directory of the tables")
    args = parser.parse_args()
    names = args.table or [p.name.removesuffix(".csv.gz") for p in args.truth.glob("*.csv.gz")]
    print(
        f"{'table':12} {'machines':>8} {'first':>8} {'search':>8} {'efficiency':>10} {'near':>6} "
        f"{'trials':>7} {'at once':>8}"
    )
    single = functools.partial(threadpool_limits, 1)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), initializer=single) as pool:
        for name in sorted(names):
            alone_s = None
            for number in args.machines or NUMBERS:
                work = functools.partial(run_seeds, args.truth / f"{name}.csv.gz", number)
                # Of many machines, each of which reckons, fewer studies can be waited for.
                num_seeds = max(2, args.seeds // max(1, number // 4))
                parts = [range(n, num_seeds, 8) for n in range(8)]
                found = [one for part in pool.map(work, parts) for one in part]
                last_s = statistics.median(one.last_s for one in found)
                alone_s = alone_s or last_s * number
                print(
                    f"{name:12} {number:8} {statistics.median(o.first_s for o in found):6.1f} s "
                    f"{last_s:6.1f} s {100 * alone_s / (number * last_s):8.0f} % "
                    f"{100 * statistics.mean(one.is_near for one in found):4.0f} % "
                    f"{statistics.median(one.num_trials for one in found):7.0f} "
                    f"{statistics.median(one.num_repeated for one in found):8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
