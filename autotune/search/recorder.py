"""Runs trials and stores what came of each, whatever that was."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from autotune.config import ThroughputConfig
from autotune.measurement import Failure, StartMode
from autotune.search.definition import StudyDefinition
from autotune.search.knowledge import Knowledge
from autotune.search.plan import Plan
from autotune.search.progress import Observer
from autotune.search.records import Outcome, Phase, TrialRecord
from autotune.search.rounds import RoundPlan, measure_round
from autotune.search.study import StudyStore
from autotune.search.visits import Limits, visit
from autotune.trials.neighbours import QuietKeeper
from autotune.trials.runner import Runner
from autotune.trials.trial import Trial, TrialFailedError

# Of the budget, what may be spent on waiting for other processes to leave the cores alone; and no
# more than so long, however large it is.
_WAITING_SHARE, _LONGEST_WAITING_S = 0.35, 120.0


class Recorder:
    """Starts, measures and ends trials, and keeps them in a study.

    Attributes:
        definition: How long to measure.
        store: Where trials are kept.
        runner: Starts them.
        observer: Is told of failures.
        keeper: Waits for a quiet machine.
        sample_s: Seconds that a sample takes with the baseline; None until that is known.

    Args:
        definition: The attribute, as the next three.
        store: See above.
        runner: See above.
        observer: See above.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        *,
        store: StudyStore,
        runner: Runner,
        observer: Observer,
    ) -> None:
        waiting_s = min(_WAITING_SHARE * definition.budget_s, _LONGEST_WAITING_S)
        self.keeper = QuietKeeper(0.0 if definition.allow_busy else waiting_s)
        self.sample_s: float | None = None
        self.definition = definition
        self.store = store
        self.runner = runner
        self.observer = observer
        self._deadline_s = time.monotonic() + definition.budget_s

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self._deadline_s - time.monotonic()

    def limits(self, config: ThroughputConfig) -> Limits:
        """What a trial of `config` may take."""
        return Limits(
            step_s=None if self.sample_s is None else config.batch_size * self.sample_s,
            first_step_deadline_s=self.runner.start_deadline_s,
            end_s=self._deadline_s,
        )

    def knowledge(self, plan: Plan) -> Knowledge:
        """What is known of a plan's configurations; a study may hold others as well."""
        searched = {*plan.configurations, plan.baseline}
        return Knowledge.of(record for record in self.store.records() if record.config in searched)

    def visit(
        self,
        config: ThroughputConfig,
        phase: Phase,
        *,
        num_blocks: int | None = None,
        incumbent: float = 0.0,
    ) -> TrialRecord:
        """One short trial by itself, started as trials of the search are.

        Args:
            config: What runs.
            phase: Why.
            num_blocks: See `visits.visit`; None for as many as there may be.
            incumbent: See there.
        """
        number = self.store.begin(config, phase)
        mode = self.runner.mode
        started_s = time.monotonic()
        found: Outcome | Failure
        try:
            with self.runner.start(config, mode) as trial:
                mode = trial.mode
                found = visit(
                    trial,
                    self.definition,
                    num_blocks=num_blocks or self.definition.max_blocks,
                    incumbent=incumbent,
                    limits=self.limits(config),
                    keeper=self.keeper,
                )
        except TrialFailedError as error:
            found = error.failure
        return self.keep(number, found, mode, time.monotonic() - started_s)

    def run_round(
        self,
        configs: Sequence[ThroughputConfig],
        *,
        number: int,
        side_by_side: bool,
        shuffle: random.Random,
    ) -> list[TrialRecord]:
        """One round of the confirmation: a fresh process for each configuration."""
        numbers: dict[ThroughputConfig, int] = {}

        def start(config: ThroughputConfig) -> Trial:
            numbers[config] = self.store.begin(config, Phase.CONFIRM, round_number=number)
            return self.runner.start(config, StartMode.FRESH)

        if side_by_side:
            self.runner.launch_ahead(len(configs))
        plan = RoundPlan(
            definition=self.definition,
            limits_of=self.limits,
            keeper=self.keeper,
            side_by_side=side_by_side,
        )
        return [
            self.keep(numbers[config], found, StartMode.FRESH, None)
            for config, found in measure_round(configs, start, plan, shuffle).items()
        ]

    def keep(
        self, number: int, found: Outcome | Failure, mode: StartMode, duration_s: float | None
    ) -> TrialRecord:
        """Store how a trial ended; a failure is told, too.

        Args:
            number: The trial's, in the study.
            found: How.
            mode: How it was started.
            duration_s: How long a failed one took; None where it failed beside others.
        """
        if isinstance(found, Failure):
            self.store.fail(number, found, mode, duration_s)
            record = self.store.records()[number]
            self.observer.note(f"{record.config.summary}: {found.cause}: {found.message}")
        else:
            self.store.complete(number, found)
            record = self.store.records()[number]
        return record
