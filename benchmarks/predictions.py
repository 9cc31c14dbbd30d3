"""What was predicted of mm_rec's settings, measured: `python benchmarks/predictions.py`.

The report that this project grew from saw MM-Rec's training at a batch of 2 without workers,
threads or prefetching set, and predicted what setting each would bring. This trains mm_rec with and
without each, side by side in fresh processes, a quarter of a second each in turn, and writes
docs/predictions.md. Nothing else may run meanwhile (3 minutes on 2 cores).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path

from measurement import no_limits

from autotune.analysis.comparison import choose
from autotune.config import ThroughputConfig
from autotune.intervals import Ratio
from autotune.measurement import Failure, Measurement, StartMode
from autotune.study.definition import StudyDefinition
from autotune.system.load import QuietKeeper
from autotune.system.machine import this_machine
from autotune.trials.runner import open_runner
from autotune.tuning.rounds import RoundPlan, measure_round

COMMAND = (sys.executable, "-m", "mm_rec.train")
PAGE = Path(__file__).parent.parent / "docs" / "predictions.md"
NUM_ROUNDS = 4
CORES = this_machine().usable_cores
BASELINE = ThroughputConfig(batch_size=2)
WORKERS = ThroughputConfig(batch_size=2, num_workers=4)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one change was said to bring.

    Attributes:
        change: In words.
        before: Settings without it.
        after: Settings with it.
        low: Least predicted ratio of throughputs.
        high: Largest.
    """

    change: str
    before: ThroughputConfig
    after: ThroughputConfig
    low: float
    high: float


PREDICTIONS = (
    Prediction(change="4 workers for none", before=BASELINE, after=WORKERS, low=1.3, high=1.5),
    Prediction(
        change="batch of 16 for 2",
        before=BASELINE,
        after=ThroughputConfig(batch_size=16),
        low=1.2,
        high=1.3,
    ),
    Prediction(
        change=f"{CORES} threads for torch's default",
        before=BASELINE,
        after=ThroughputConfig(batch_size=2, num_threads=CORES),
        low=1.1,
        high=1.2,
    ),
    Prediction(
        change="4 batches ahead per worker for 2",
        before=WORKERS,
        after=ThroughputConfig(batch_size=2, num_workers=4, prefetch_factor=4),
        low=1.1,
        high=1.15,
    ),
    Prediction(
        change="all of them",
        before=BASELINE,
        after=ThroughputConfig(batch_size=16, num_workers=4, prefetch_factor=4, num_threads=CORES),
        low=2.0,
        high=2.7,
    ),
)
# Of the cores, before and after.
UTILISATION = ((0.2, 0.3), (0.8, 0.9))


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    lines = [
        "# What was predicted, and what is",
        "",
        f"Written by `python benchmarks/predictions.py` on {datetime.now(UTC):%d %B %Y}; machine: "
        f"{this_machine()}.",
        "",
        "The report that this project grew from blamed the slow training of MM-Rec on the settings "
        "of its loader and threads, and predicted what others would bring. Each was measured: "
        f"training with and without it, side by side, in {NUM_ROUNDS} rounds of fresh processes. "
        "Ratios of throughput with 95 % intervals.",
        "",
        "| change | predicted | measured | verdict |",
        "|---|---|---|---|",
    ]
    found: dict[ThroughputConfig, list[Measurement]] = {}
    for prediction in PREDICTIONS:
        runs = train_in_turn((prediction.before, prediction.after))
        found |= runs
        rates = {c: [run.samples_per_s for run in all_runs] for c, all_runs in runs.items()}
        measured = choose(rates, prediction.before).speedup
        lines.append(
            f"| {prediction.change} | {prediction.low:.2f} to {prediction.high:.2f} | "
            f"{measured.ratio:.2f} ({measured.low:.2f} to {measured.high:.2f}) | "
            f"{verdict(prediction, measured)} |"
        )
        print(lines[-1], flush=True)
    for when, config, (low, high) in zip(
        ("before", "after"), (BASELINE, PREDICTIONS[-1].after), UTILISATION, strict=True
    ):
        used = statistics.median(run.cpu_utilisation for run in found[config])
        right = "right" if low <= used <= high else "wrong"
        lines.append(
            f"| CPU utilisation {when} | {100 * low:.0f} to {100 * high:.0f} % | "
            f"{100 * used:.0f} % | {right} |"
        )
    waits = statistics.median(run.data_wait_share for run in found[BASELINE])
    step_s = statistics.median(run.seconds_per_step for run in found[BASELINE])
    lines += [
        "",
        f"With the settings of then, the loop waits for data in {100 * waits:.1f} % of the time, "
        "which is all that workers and prefetching can save. The report's steps took 82 s, most of "
        "it in a loop over the tokens in Python; a step of the same size takes "
        f"{step_s:.2f} s here.",
    ]
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"written to {PAGE}")


def verdict(prediction: Prediction, measured: Ratio) -> str:
    """What the measurement says of the prediction."""
    if measured.high < prediction.low:
        harmful = measured.high < 1.0
        return "wrong: it makes training slower" if harmful else "wrong: less"
    if measured.low > prediction.high:
        return "wrong: more"
    if measured.low >= prediction.low and measured.high <= prediction.high:
        return "right"
    return "not refuted"


def train_in_turn(
    configs: tuple[ThroughputConfig, ...],
) -> dict[ThroughputConfig, list[Measurement]]:
    """Each configuration's figures, round by round; ends the program where one fails."""
    plan = RoundPlan(
        definition=StudyDefinition(name="predictions", command=COMMAND),
        limits_of=lambda _: no_limits(),
        keeper=QuietKeeper(120.0),
        side_by_side=True,
        probed=False,
    )
    shuffle = random.Random(0)
    found: dict[ThroughputConfig, list[Measurement]] = {config: [] for config in configs}
    with open_runner(COMMAND, start_mode=StartMode.FRESH, start_deadline_s=120.0) as runner:
        for _ in range(NUM_ROUNDS):
            runner.launch_ahead(len(configs))
            outcomes = measure_round(
                configs, lambda config: runner.start(config, StartMode.FRESH), plan, shuffle
            )
            for config, outcome in outcomes.items():
                if isinstance(outcome, Failure):
                    sys.exit(f"{config.summary}: {outcome.cause}: {outcome.message}")
                found[config].append(outcome.measurement)
    return found


if __name__ == "__main__":
    main()
