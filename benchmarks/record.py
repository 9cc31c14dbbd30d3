"""Records a truth table, for benchmarks/search.py: `python benchmarks/record.py NAME`.

Every configuration of a space is measured in three forked trials, the 20 fastest in six more, and
the eight fastest of these in twelve more, since it is among them that the truth is to be known.
Eight trials are open at once and are measured in turn, a block each, so that what the machine does
meanwhile is done to all alike and can be told apart. It takes half an hour or more, in which
nothing else may run here; what was recorded when it is ended is kept, and gone on with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from autotune import axes
from autotune.config import ThroughputConfig
from autotune.files import write_atomically
from autotune.measurement import StartMode
from autotune.study.definition import StudyDefinition
from autotune.system.load import QuietKeeper
from autotune.system.machine import this_machine
from autotune.trials.runner import Runner, open_runner
from autotune.trials.trial import TrialFailedError
from autotune.tuning.plan import make_plan
from autotune.tuning.trial_runs import Limits, Run

TRUTH = Path(__file__).with_name("truth")
SCRIPT = (sys.executable, str(Path(__file__).with_name("workloads.py").resolve()))
MM_REC = (sys.executable, "-m", "mm_rec.train", "--seq-len", "64")
# Common to all tables; with eight batch sizes that is 208 configurations on two cores.
AXES: dict[str, tuple[int | bool, ...]] = {
    "num_workers": (0, 1, 2, 3, 4),
    "prefetch_factor": (2, 4, 8),
    "num_threads": (1, 2),
}
TABLES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    # An update takes 48 samples in the first, and as many as the batch has in the second.
    "ahead": ((*MM_REC, "--effective-batch-size", "48"), (1, 2, 4, 6, 8, 12, 16, 24)),
    "on_the_fly": ((*MM_REC, "--tokenize", "on-the-fly"), (1, 2, 4, 6, 8, 12, 16, 24)),
    "decoded": ((*SCRIPT, "decoded"), (2, 4, 8, 16, 32, 64, 128, 256)),
    "rows": ((*SCRIPT, "rows"), (8, 16, 32, 64, 128, 256, 512, 1024)),
    "storage": ((*SCRIPT, "storage"), (1, 2, 4, 8, 16, 32, 64, 128)),
}
NUM_OPEN, NUM_TURNS = 8, 4
# How often how many of the fastest are measured, one stage after another; None for all of them.
STAGES: tuple[tuple[int | None, int], ...] = ((None, 3), (20, 6), (8, 12))
# A disturbed block is measured again so many times, after waiting for a quiet machine.
NUM_TRIES = 3
DEADLINE_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("--out", type=Path, default=TRUTH, help="directory (benchmarks/truth)")
    args = parser.parse_args()
    command, batch_sizes = TABLES[args.name]
    args.out.mkdir(parents=True, exist_ok=True)
    with open_runner(command, start_mode=None, start_deadline_s=DEADLINE_S) as runner:
        Recording(args.out / args.name, runner, command, batch_sizes).run()


class Recording:
    """One truth table while it is recorded.

    Args:
        path: Where it goes, less the suffixes: blocks to .csv.gz, facts to .json.
        runner: Starts the trials.
        command: What is recorded.
        batch_sizes: Values of that axis.
    """

    def __init__(
        self, path: Path, runner: Runner, command: tuple[str, ...], batch_sizes: tuple[int, ...]
    ) -> None:
        self.blocks = path.with_suffix(".csv.gz")
        self.facts = path.with_suffix(".json")
        self.runner = runner
        axes = {"batch_size": batch_sizes, **AXES}
        self.definition = StudyDefinition(name=path.name, command=command, axes=axes)
        self.rows: list[dict[str, Any]] = []
        self.num_groups = 0

    def run(self) -> None:
        """Record what is not yet there."""
        fresh_s, baseline, configs = self._look_around()
        recorded: set[int] = set()
        before_s = 0.0
        if self.blocks.exists():
            earlier = pd.read_csv(self.blocks)
            self.rows = earlier.astype(object).to_dict("records")
            recorded = set(earlier["group"])
            before_s = float(earlier["at_s"].max()) + 60.0
        self.start_s = time.monotonic() - before_s
        facts = {
            "machine": str(this_machine()),
            "date": f"{datetime.now():%Y-%m-%d}",
            "command": " ".join(("python", *map(short, self.definition.command[1:]))),
            "fresh_start_s": fresh_s,
            "baseline": baseline.to_dict(),
        }
        write_atomically(self.facts, json.dumps(facts, indent=2) + "\n")
        shuffle = random.Random(0)
        for num_fastest, num_repeats in STAGES:
            chosen = configs if num_fastest is None else self._fastest(configs, num_fastest)
            for number, group in self._groups(chosen, num_repeats, shuffle):
                if number not in recorded:
                    self._record(number, group)
        print(f"{self.definition.name}: {len(self.rows)} blocks in {self.num_groups} groups")

    def _look_around(self) -> tuple[list[float], ThroughputConfig, Sequence[ThroughputConfig]]:
        """What a fresh start takes, three times; the baseline, and the space."""
        fresh_s = []
        for _ in range(3):
            start_s = time.monotonic()
            with self.runner.start_default() as trial:
                fresh_s.append(round(time.monotonic() - start_s, 2))
                mode = trial.mode
        assert self.runner.introduction is not None and mode is StartMode.FRESH
        plan = make_plan(self.definition, self.runner.introduction)
        return fresh_s, plan.baseline, plan.configurations

    def _groups(
        self, configs: Sequence[ThroughputConfig], num_repeats: int, shuffle: random.Random
    ) -> Iterator[tuple[int, list[ThroughputConfig]]]:
        """All configurations once, in groups at random; then once more, and so on."""
        for _ in range(num_repeats):
            order = list(configs)
            shuffle.shuffle(order)
            for start in range(0, len(order), NUM_OPEN):
                self.num_groups += 1
                yield self.num_groups, order[start : start + NUM_OPEN]

    def _record(self, number: int, group: Sequence[ThroughputConfig]) -> None:
        keeper = QuietKeeper(60.0)
        definition = self.definition
        runs: list[Run] = []
        with contextlib.ExitStack() as stack:
            for config in group:
                limits = Limits(
                    step_s=None,
                    first_step_deadline_s=DEADLINE_S,
                    end_s=time.monotonic() + 3600.0,
                )
                try:
                    trial = stack.enter_context(self.runner.start(config, StartMode.FORK))
                    assert trial.mode is StartMode.FORK, self.runner.fresh_reason
                    runs.append(Run(trial, definition, limits, whole=False))
                except TrialFailedError as error:
                    print(f"{config.summary}: {error}", flush=True)
            for turn in range(NUM_TURNS):
                # What has been recorded must not depend on the order of those that come after.
                order = random.Random(f"{number} {turn}").sample(runs, len(runs))
                for run in order:
                    self.rows.append(self._row(run, number, turn, keeper))
        pd.DataFrame(self.rows).to_csv(self.blocks, index=False, float_format="%.6g")
        print(
            f"{number}: {time.monotonic() - self.start_s:.0f} s, "
            f"waited {keeper.waited_s:.0f} s for quiet",
            flush=True,
        )

    def _row(self, run: Run, group: int, turn: int, keeper: QuietKeeper) -> dict[str, Any]:
        for _ in range(NUM_TRIES):
            at_s = time.monotonic() - self.start_s
            [block] = run.measure().blocks
            if not block.interference or not keeper.wait():
                break
        config = run.trial.config.to_dict()
        settling = run.samples[0].settling
        assert settling is not None and run.trial.start_up_s is not None
        return {
            **{name: config[name] for name in axes.AXES if name in self.definition.axes},
            "group": group,
            "turn": turn,
            "at_s": at_s,
            # To the first batch; `settle_s` has the first step in it.
            "start_up_s": run.trial.start_up_s,
            "settle_s": settling.duration_s,
            "duration_s": block.duration_s,
            "num_steps": block.num_steps,
            "num_samples": block.num_samples,
            "num_units": block.num_units,
            "wait_s": block.wait_s,
            "wait_cpu_s": block.wait_cpu_s,
            "cpu_s": block.cpu_s,
            "ready_change": block.ready_change,
            "disturbed": int(bool(block.interference)),
        }

    def _fastest(self, configs: Sequence[ThroughputConfig], number: int) -> list[ThroughputConfig]:
        """So many, by the groups so far."""
        frame = pd.DataFrame(self.rows)
        frame = frame[frame["group"] <= self.num_groups]
        axes = list(self.definition.axes)
        sums = frame.groupby(axes, dropna=False)[["num_units", "duration_s"]].sum()
        rates = {key_of(key): rate for key, rate in (sums.num_units / sums.duration_s).items()}

        def rate(config: ThroughputConfig) -> float:
            settings = config.to_dict()
            return float(rates.get(key_of([settings[name] for name in axes]), 0.0))

        return sorted(configs, key=rate, reverse=True)[:number]


def key_of(values: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Values of settings, comparable whether they come from a file or not; -1 for none."""
    return tuple(-1 if pd.isna(value) else int(value) for value in values)


def short(part: str) -> str:
    """A part of a command without the directories that it has on this machine."""
    return f"benchmarks/{Path(part).name}" if part.endswith(".py") else part


if __name__ == "__main__":
    main()
