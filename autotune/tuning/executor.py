"""Runs trials and stores what came of each, whatever that was."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence

from autotune.analysis.interference import check_cores
from autotune.analysis.knowledge import Knowledge
from autotune.analysis.lessons import Lesson, kind_of, learn
from autotune.analysis.memory_forecast import foresee_exhaustion
from autotune.config import ThroughputConfig
from autotune.errors import NothingWorkedError
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.study.definition import StudyDefinition
from autotune.study.records import Outcome, Phase, TrialRecord, telling_failures
from autotune.study.store import StudyStore
from autotune.system.load import QuietKeeper
from autotune.system.memory import memory_left_bytes, shared_memory_left_bytes
from autotune.trials.runner import ASKED_FOR, Runner
from autotune.trials.trial import Trial, TrialFailedError
from autotune.tuning.plan import Plan
from autotune.tuning.progress import Observer
from autotune.tuning.rounds import RoundPlan, measure_round
from autotune.tuning.trial_runs import Limits, run_short

# Of the budget, what may be spent on waiting for other processes to leave the cores alone; and no
# more than so long, however large it is.
_WAITING_SHARE, _LONGEST_WAITING_S = 0.35, 120.0
# So many failures of the same kind, without a success, are the command's and not the settings'.
_MOST_ALIKE = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the baseline's trial tells of all others.

    Attributes:
        gpu_headroom: See `trial_runs.Limits`; less where the baseline itself leaves less.
        baseline: Its configuration, once it is measured.
        sample_s: Seconds that a sample takes with it; None until that is known.
        warm_up_s: See `trial_runs.Limits`.
        first_epoch_s: See there.
        expects_finite: Whether its parameters stayed finite.
    """

    gpu_headroom: float
    baseline: ThroughputConfig | None = None
    sample_s: float | None = None
    warm_up_s: float = 0.0
    first_epoch_s: float = 0.0
    expects_finite: bool = False


class Executor:
    """Starts, measures and ends trials, and keeps them in a study.

    Attributes:
        definition: How long to measure.
        store: Where trials are kept.
        runner: Starts them.
        observer: Is told of failures.
        keeper: Waits for a quiet machine.
        calibration: What the baseline's trial tells.
        lessons: What the failures so far teach.

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
        self.calibration = Calibration(gpu_headroom=definition.gpu_headroom)
        self.lessons: tuple[Lesson, ...] = ()
        self._something_worked = False
        self._told_reason: str | None = None
        self._failures: list[TrialRecord] = []
        self._rounds_before = 0
        self.definition = definition
        self.store = store
        self.runner = runner
        self.observer = observer
        self._deadline_s = time.monotonic() + definition.budget_s
        runner.end_s = self._deadline_s

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self._deadline_s - time.monotonic()

    def calibrate(self, calibration: Calibration) -> None:
        """Have trials from now on run by what the baseline's trial told."""
        self.calibration = calibration

    def limits(self, config: ThroughputConfig) -> Limits:
        """What a trial of `config` may take."""
        known = self.calibration
        return Limits(
            step_s=None if known.sample_s is None else config.batch_size * known.sample_s,
            first_step_deadline_s=self.runner.patience_s,
            end_s=self._deadline_s,
            expects_finite=known.expects_finite,
            first_epoch_s=known.first_epoch_s,
            warm_up_s=known.warm_up_s,
            gpu_headroom=None if config == known.baseline else known.gpu_headroom,
        )

    def rules_out(self, config: ThroughputConfig) -> bool:
        """Whether a configuration is not to be tried, by what failures teach."""
        return any(lesson.covers(config) for lesson in self.lessons)

    def learn(self) -> None:
        """Look at what the trials teach now, and tell what is new."""
        earlier, self.lessons = self.lessons, learn(self.store.records())
        subjects = {lesson.subject for lesson in earlier}
        kinds = {kind_of(lesson.failure) for lesson in self.lessons}
        for lesson in self.lessons:
            if lesson.subject not in subjects:
                self.observer.note(lesson.sentence)
        for lesson in earlier:
            if kind_of(lesson.failure) not in kinds:
                self.observer.note(
                    f"{lesson.subject} is not ruled out any more: other configurations failed so, "
                    "too, or one that has it ran"
                )

    def knowledge(self, plan: Plan) -> Knowledge:
        """What is known of a plan's configurations; a study may hold others as well."""
        searched = {*plan.configurations, plan.baseline}
        records = self.store.trusted_records()
        known = Knowledge.of(record for record in records if record.config in searched)
        # What ran can run, even where its figures are not believed or it is not in the plan.
        return dataclasses.replace(known, lessons=self.lessons)

    def run_short(
        self,
        config: ThroughputConfig,
        phase: Phase,
        *,
        num_blocks: int | None = None,
        incumbent: float = 0.0,
    ) -> TrialRecord:
        """One short trial by itself, started as trials of the search are.

        If it is killed, once more: see `telling_failures`. If it is forked and cannot use the GPU
        for that, once more in a fresh process, as all that follow. Once more also where it went on
        in the process of another trial, which may be why.

        Args:
            config: What runs.
            phase: Why.
            num_blocks: See `trial_runs.run_short`.
            incumbent: See there.

        Raises:
            TakenError: See `StudyStore.begin`.
        """
        record = self._visit(config, phase, num_blocks=num_blocks, incumbent=incumbent)
        failure = record.failure
        if failure is None:
            return record
        is_forked = record.start_mode is StartMode.FORK
        if failure.cause is FailureCause.DEVICE_AFTER_FORK and is_forked:
            self.give_up_forking(f"a forked trial failed: {failure.message}")
            self.tell_fresh_reason()
            record = self._visit(config, phase, num_blocks=num_blocks, incumbent=incumbent)
        elif self.left_s > 0 and (
            failure.cause is FailureCause.KILLED or record.start_mode is StartMode.SWAP
        ):
            record = self._visit(config, phase, num_blocks=num_blocks, incumbent=incumbent)
        return record

    def give_up_forking(self, reason: str) -> None:
        """Start every further trial of the study afresh."""
        self.store.set_facts(fork_failure=reason)
        self.runner.give_up_forking(reason)

    def starts_at_once(self, config: ThroughputConfig) -> bool:
        """Whether a trial of a configuration could go on in the process of the last one."""
        return self._may_swap and self.runner.can_swap(config)

    @property
    def _may_swap(self) -> bool:
        """Whether trials may go on in the process of others: what these cached would flatter them.

        Nor where the first epoch differs from those that follow, which they would never meet again.
        """
        return not self.runner.num_repeated and not self.calibration.first_epoch_s

    def tell_fresh_reason(self) -> None:
        """Say once why trials are not forked, where nobody asked for that."""
        reason = self.runner.fresh_reason
        if reason not in (None, ASKED_FOR, self._told_reason):
            self.observer.note(f"each trial starts afresh: {reason}")
            self._told_reason = reason

    def _visit(
        self,
        config: ThroughputConfig,
        phase: Phase,
        *,
        num_blocks: int | None,
        incumbent: float,
    ) -> TrialRecord:
        check_cores()
        foreseen = foresee_exhaustion(
            config,
            self.store.records(),
            memory_left_bytes=memory_left_bytes(),
            shared_memory_left_bytes=shared_memory_left_bytes(),
            gpu_headroom=self.calibration.gpu_headroom,
        )
        number = self.store.begin(config, phase)
        mode = self.runner.mode
        started_s = time.monotonic()
        if foreseen is not None:
            return self.keep(number, foreseen, mode, 0.0)
        found: Outcome | Failure
        try:
            with self.runner.start(config, mode, may_swap=self._may_swap) as trial:
                mode = trial.mode
                found = run_short(
                    trial,
                    self.definition,
                    num_blocks=num_blocks,
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
        check_cores()
        numbers: dict[ThroughputConfig, int] = {}
        if number == 1:
            # No two rounds of a machine are to have one number, in whichever run they were.
            stored = (r.round_number for r in self.store.records() if r.host == self.store.host)
            self._rounds_before = max((found or 0 for found in stored), default=0)
        round_number = self._rounds_before + number

        def start(config: ThroughputConfig) -> Trial:
            numbers[config] = self.store.begin(config, Phase.CONFIRM, round_number=round_number)
            return self.runner.start(config, StartMode.FRESH)

        if side_by_side:
            self.runner.launch_ahead(len(configs))
        plan = RoundPlan(
            definition=self.definition,
            limits_of=self.limits,
            keeper=self.keeper,
            side_by_side=side_by_side,
            probed_before={
                record.config
                for record in self.store.records()
                if record.phase is Phase.CONFIRM
                and record.host == self.store.host
                and record.measurement is not None
                and record.measurement.compute_units_per_s is not None
            },
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
            self._check_failures(record)
        else:
            self.store.complete(number, found)
            warm_up_s = max(self.calibration.warm_up_s, found.measurement.warm_up_s)
            self.calibrate(dataclasses.replace(self.calibration, warm_up_s=warm_up_s))
            record = self.store.records()[number]
            if record.phase is not Phase.PROBE:
                self._something_worked = True
        self.learn()
        return record

    def _check_failures(self, record: TrialRecord) -> None:
        """One bad configuration is no reason to stop; the same failure with each of them is.

        Raises:
            NothingWorkedError: All that was tried beside the baseline failed alike.
        """
        failure = record.failure
        assert failure is not None
        if record.phase is Phase.PROBE or failure.cause.is_exhaustion or self._something_worked:
            return
        if record.number not in telling_failures(self.store.records()):
            return
        self._failures.append(record)
        kinds = {kind_of(r.failure) for r in self._failures if r.failure}
        if len(self._failures) >= _MOST_ALIKE and len(kinds) == 1 and self._explain_nothing():
            raise NothingWorkedError(
                f"{len(self._failures)} configurations in a row failed alike, and none worked "
                f"beside the baseline: {failure.cause}: {failure.message}. `autotune show` "
                "has all; mend the command, and run it again"
            )

    def _explain_nothing(self) -> bool:
        """Whether no setting explains the failures: of each, one has the baseline's value."""
        [baseline] = {r.config for r in self.store.records() if r.phase is Phase.BASELINE}
        failed = [record.config.to_dict() for record in self._failures]
        return all(
            any(config[name] == value for config in failed)
            for name, value in baseline.to_dict().items()
        )
