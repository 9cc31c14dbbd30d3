"""The loop between the optimizer, which asks for trials, and what runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from autotune.config import ThroughputConfig
from autotune.measurement import Failure
from autotune.optimizer.adaptive import AdaptiveOptimizer, Reading, Request, ShortTrial, Stop
from autotune.study.store import TakenError

# Where only what runs elsewhere could change anything, it is looked at so often, for so long.
LOOK_EVERY_S, _LONGEST_WAIT_S = 1.0, 15.0


class Bench(Protocol):
    """Where trials are run: live, or on a recorded table."""

    @property
    def now_s(self) -> float:
        """Seconds since some start, on the clock of the readings."""

    def run(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """Start a trial of a configuration, warm it up, time so many blocks of it, and end it.

        Raises:
            TakenError: Another machine runs one of it now.
        """


class Others(Protocol):
    """Other machines that search the same space."""

    def news(self) -> Iterable[ShortTrial]:
        """Trials that they have run since this was asked last."""

    def pending(self) -> Collection[ThroughputConfig]:
        """Configurations of which they run a trial now."""

    def wait(self) -> None:
        """Let `LOOK_EVERY_S` pass."""


def search(
    optimizer: AdaptiveOptimizer,
    bench: Bench,
    end_s: float,
    *,
    reserved_s: float = 0.0,
    others: Others | None = None,
    max_trials: int | None = None,
    after_each: Callable[[], None] = lambda: None,
) -> bool:
    """Run what the optimizer asks for, until it stops; says whether nothing was left to ask.

    Args:
        optimizer: Asks.
        bench: Runs the trials.
        end_s: When the time is up, on the bench's clock.
        reserved_s: What is kept of it for the confirmation at least.
        others: Who searches as well; None for nobody.
        max_trials: Most trials beside the baseline's first; None for no limit.
        after_each: Called after each of these.
    """
    num_trials = 0
    waits_until_s: float | None = None
    while True:
        pending: Collection[ThroughputConfig] = ()
        if others is not None:
            news = tuple(others.news())
            if news:
                optimizer.learn(news)
            pending = others.pending()
        now_s = bench.now_s
        asked = optimizer.ask(
            now_s=now_s, left_s=end_s - now_s, reserved_s=reserved_s, pending=pending
        )
        if isinstance(asked, Stop):
            if waits_until_s is None:
                waits_until_s = min(end_s - reserved_s, now_s + _LONGEST_WAIT_S)
            if others is None or not pending or now_s >= waits_until_s:
                return asked.complete
            # What the others find may make more of it worth measuring.
            others.wait()
            continue
        waits_until_s = None
        is_first = not optimizer.num_tried
        if not is_first and num_trials == max_trials:
            return False
        with contextlib.suppress(TakenError):
            _run(optimizer, bench, asked)
            if not is_first:
                num_trials += 1
                after_each()


def check_best(optimizer: AdaptiveOptimizer, bench: Bench, end_s: float) -> bool:
    """Run the best configuration where it never ran, if that fits; says whether it did.

    Args:
        optimizer: Knows which is the best.
        bench: Runs the trial.
        end_s: When the time is up, on the bench's clock.
    """
    asked = optimizer.ask_for_check(left_s=end_s - bench.now_s)
    if isinstance(asked, Stop):
        return False
    try:
        _run(optimizer, bench, asked)
    except TakenError:
        return False
    return True


def _run(optimizer: AdaptiveOptimizer, bench: Bench, asked: Request) -> None:
    outcome = bench.run(asked.config, asked.num_blocks)
    optimizer.tell(ShortTrial(config=asked.config, outcome=outcome))
