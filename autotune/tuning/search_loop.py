"""The loop between the optimizer, which asks for trials, and what runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from autotune.config import ThroughputConfig
from autotune.measurement import Failure
from autotune.optimizer.adaptive import AdaptiveOptimizer, Reading, Request, ShortTrial, Stop


class Bench(Protocol):
    """Where trials are run: live, or on a recorded table."""

    @property
    def now_s(self) -> float:
        """Seconds since some start, on the clock of the readings."""

    def run(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """Start a trial of a configuration, warm it up, time so many blocks of it, and end it."""


def search(
    optimizer: AdaptiveOptimizer,
    bench: Bench,
    end_s: float,
    *,
    max_trials: int | None = None,
    after_each: Callable[[], None] = lambda: None,
) -> bool:
    """Run what the optimizer asks for, until it stops; says whether nothing was left to ask.

    Args:
        optimizer: Asks.
        bench: Runs the trials.
        end_s: When no trial may run any more, on the bench's clock.
        max_trials: Most trials beside the baseline's first; None for no limit.
        after_each: Called after each of these.
    """
    num_trials = 0
    while True:
        asked = optimizer.ask(now_s=bench.now_s, left_s=end_s - bench.now_s)
        if isinstance(asked, Stop):
            return asked.complete
        is_first = not optimizer.num_tried
        if not is_first and num_trials == max_trials:
            return False
        _run(optimizer, bench, asked)
        if not is_first:
            num_trials += 1
            after_each()


def check_best(optimizer: AdaptiveOptimizer, bench: Bench, end_s: float) -> bool:
    """Run the best configuration where it never ran, if that fits; says whether it did.

    Args:
        optimizer: Knows which is the best.
        bench: Runs the trial.
        end_s: When it must have ended, on the bench's clock.
    """
    asked = optimizer.ask_for_check(left_s=end_s - bench.now_s)
    if isinstance(asked, Stop):
        return False
    _run(optimizer, bench, asked)
    return True


def _run(optimizer: AdaptiveOptimizer, bench: Bench, asked: Request) -> None:
    outcome = bench.run(asked.config, asked.num_blocks)
    optimizer.tell(ShortTrial(config=asked.config, outcome=outcome))
