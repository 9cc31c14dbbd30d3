"""A round of the confirmation: configurations live side by side, measured block by block in turn.

On a shared machine speed drifts within seconds. Blocks that follow each other closely share the
drift, and it cancels in their ratio; runs one after another do not. A fresh process for each
configuration in each round shows what differs from process to process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Callable, Sequence, Set

from autotune.blocks import Sample
from autotune.config import ThroughputConfig
from autotune.measurement import Failure
from autotune.study.definition import StudyDefinition
from autotune.study.records import Outcome
from autotune.system.load import QuietKeeper
from autotune.trials.trial import Trial, TrialFailedError
from autotune.tuning.trial_runs import MAX_REPEATS, Limits, Run

# Step and loader are timed by themselves in each round where a block takes no longer.
_SHORT_S = 1.0
# A round that begins late is measured for so long, or a turn: its processes were dearer than that.
_LEAST_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """How a round is run.

    Attributes:
        definition: Says how long a block is, and how long each configuration is measured.
        limits_of: What a trial of a configuration may take.
        keeper: Waits for a quiet machine.
        side_by_side: Whether all trials are open at once; else one after another.
        probed: Whether step and loader are timed by themselves, too.
        probed_before: Configurations of which they were: once is enough where a step takes long,
            and not at all where there is no time for it.
    """

    definition: StudyDefinition
    limits_of: Callable[[ThroughputConfig], Limits]
    keeper: QuietKeeper
    side_by_side: bool
    probed: bool = True
    probed_before: Set[ThroughputConfig] = frozenset()


def measure_round(
    configs: Sequence[ThroughputConfig],
    start: Callable[[ThroughputConfig], Trial],
    plan: RoundPlan,
    shuffle: random.Random,
) -> dict[ThroughputConfig, Outcome | Failure]:
    """Measure each configuration in a process of its own.

    Args:
        configs: In any order; they are started, and measured, in a random one.
        start: Starts a trial.
        plan: How.
        shuffle: Decides the order, anew for each turn.
    """
    order = list(configs)
    shuffle.shuffle(order)
    groups = [order] if plan.side_by_side else [[config] for config in order]
    found: dict[ThroughputConfig, Outcome | Failure] = {}
    for group in groups:
        found |= _Round(group, start, plan, shuffle).measure()
    return found


class _Round:
    """The trials that are open at once."""

    def __init__(
        self,
        configs: Sequence[ThroughputConfig],
        start: Callable[[ThroughputConfig], Trial],
        plan: RoundPlan,
        shuffle: random.Random,
    ) -> None:
        self._configs = configs
        self._start = start
        self._plan = plan
        self._shuffle = shuffle
        self._turn_s = 0.0
        self._trials: dict[ThroughputConfig, Trial] = {}
        self._runs: dict[ThroughputConfig, Run] = {}
        self._failures: dict[ThroughputConfig, Failure] = {}

    def measure(self) -> dict[ThroughputConfig, Outcome | Failure]:
        """Start all, measure them in turn, end them."""
        with contextlib.ExitStack() as stack:
            # All are there before the first begins: what starts would disturb what settles.
            for config in self._configs:
                self._attempt(config, functools.partial(self._begin, config, stack))
            for config, trial in tuple(self._trials.items()):
                self._attempt(config, functools.partial(self._settle, config, trial))
            self._take_turns()
            for config, run in tuple(self._runs.items()):
                self._attempt(config, run.check_headroom)
                if config in self._runs:
                    self._attempt(config, run.check_finite)
            if self._plan.probed:
                for config, run in self._runs.items():
                    left_s = self._plan.limits_of(config).left_s
                    is_new = config not in self._plan.probed_before
                    halves = run.block_s <= _SHORT_S or (is_new and run.probes_s <= left_s)
                    # What was measured stands, even if the loop does not bear to be probed.
                    with contextlib.suppress(TrialFailedError):
                        run.probe(halves=halves)
            return self._failures | {c: run.outcome() for c, run in self._runs.items()}

    def _begin(self, config: ThroughputConfig, stack: contextlib.ExitStack) -> None:
        self._trials[config] = stack.enter_context(self._start(config))

    def _settle(self, config: ThroughputConfig, trial: Trial) -> None:
        plan = self._plan
        run = Run(trial, plan.definition, plan.limits_of(config), whole=True)
        run.pass_first_epoch()
        self._runs[config] = run

    def _take_turns(self) -> None:
        """Turns of a block each; one that was disturbed is repeated by all, within a bound.

        The longest block decides how long all of a turn's are, up to all the time that there is.
        """
        confirm_s = self._plan.definition.confirm_s
        longest_s = max((run.block_s for run in self._runs.values()), default=confirm_s)
        self._turn_s = min(longest_s, confirm_s)
        turns_left = math.ceil(confirm_s / self._turn_s)
        late_from = turns_left - min(turns_left, math.ceil(_LEAST_S / self._turn_s))
        repeats_left = MAX_REPEATS * turns_left
        while turns_left and self._runs:
            turn = self._turn()
            disturbed = [config for config, sample in turn.items() if sample.disturbed]
            late = any(self._plan.limits_of(config).are_reached for config in turn)
            if disturbed and repeats_left and not late:
                # Kept for the record. What is not disturbed is dropped with its partners.
                for config in disturbed:
                    self._runs[config].samples.append(turn[config])
                # Where the machine does not get quiet, repeating is in vain.
                repeats_left = repeats_left - 1 if self._plan.keeper.wait() else 0
                continue
            for config, sample in turn.items():
                self._runs[config].samples.append(sample)
            spent = any(run.is_spent for run in self._runs.values())
            turns_left -= 1
            if spent or (late and turns_left <= late_from):
                turns_left = 0

    def _turn(self) -> dict[ThroughputConfig, Sample]:
        order = list(self._runs)
        self._shuffle.shuffle(order)
        turn: dict[ThroughputConfig, Sample] = {}
        for config in order:
            self._attempt(config, functools.partial(self._measure_into, turn, config))
        return turn

    def _measure_into(self, turn: dict[ThroughputConfig, Sample], config: ThroughputConfig) -> None:
        turn[config] = self._runs[config].measure(min_s=self._turn_s)

    def _attempt(self, config: ThroughputConfig, action: Callable[[], object]) -> None:
        """Do something with a configuration's trial; where that fails, it is out of the round."""
        try:
            action()
        except TrialFailedError as error:
            self._runs.pop(config, None)
            self._failures[config] = error.failure
