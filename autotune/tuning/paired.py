"""Some settings against the baseline, side by side in fresh processes, without a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from autotune.analysis.comparison import complete_rounds
from autotune.analysis.interference import check_before_start, check_confirmed
from autotune.best_config import WorkloadRecord
from autotune.config import ThroughputConfig
from autotune.errors import CommandError, NothingWorkedError
from autotune.measurement import Failure
from autotune.study.records import TrialRecord, telling_failures
from autotune.trials.trial import TrialFailedError
from autotune.tuning.baseline import measure_baseline, remember_later_epochs
from autotune.tuning.confirmation import Confirmation
from autotune.tuning.executor import Executor
from autotune.tuning.plan import Plan, make_plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What came of it.

    Attributes:
        plan: What could be searched, with the script's own settings.
        runs: By configuration, its runs in those rounds that can be compared; of the baseline at
            least, where it worked at all.
        failures: Why some cannot run.
        versions: Those that the script runs with.
        workload: The size of the training.
    """

    plan: Plan
    runs: Mapping[ThroughputConfig, Sequence[TrialRecord]]
    failures: Mapping[ThroughputConfig, Failure]
    versions: Mapping[str, str]
    workload: WorkloadRecord

    @property
    def baseline(self) -> ThroughputConfig:
        """The script's own settings."""
        return self.plan.baseline


def compare(
    executor: Executor,
    choose: Callable[[Plan], Sequence[ThroughputConfig]],
    earlier: Sequence[TrialRecord] = (),
) -> Compared:
    """Run the baseline and some settings in rounds, as a confirmation does.

    Args:
        executor: Runs them.
        choose: The settings, once the command has said what its own are; the baseline is none of
            them.
        earlier: Trials of another study, which tell what they take of the memory. What never ran is
            run by itself.

    Raises:
        CommandError: The baseline cannot be measured.
        BadInputError: What `choose` raises.
        BusyMachineError: Other processes leave too little of the machine.
        NothingWorkedError: The baseline failed in each round.
    """
    runner, observer = executor.runner, executor.observer
    remember_later_epochs(executor)
    try:
        trial = runner.start_default()
    except TrialFailedError as error:
        raise CommandError(error.explain("the command")) from error
    with trial:
        introduction = runner.introduction
        assert introduction is not None
        plan = make_plan(executor.definition, introduction, trial.facts)
        candidates = tuple(dict.fromkeys(choose(plan)))
        note = check_before_start(executor.keeper, allow_busy=executor.definition.allow_busy)
        if note:
            observer.note(note)
        workload = WorkloadRecord(
            samples_per_epoch=trial.facts.samples_per_epoch,
            num_parameters=trial.facts.num_parameters,
        )
        measure_baseline(executor, plan, trial)
    runner.close()
    confirmation = Confirmation(executor)
    known = {r.config for r in (*executor.store.records(), *earlier) if r.measurement is not None}
    side_by_side = (
        not runner.may_collide
        and known.issuperset(candidates)
        and confirmation.fit_together(plan.baseline, candidates, earlier)
    )
    found = confirmation.confirm(
        [plan.baseline, *candidates],
        side_by_side=side_by_side,
        substitutes=lambda _: (),
        show=lambda: None,
    )
    runs = complete_rounds(found, plan.baseline)
    if not runs:
        raise NothingWorkedError("the baseline failed in every round of the comparison")
    if not executor.definition.allow_busy:
        check_confirmed([run for runs_of in runs.values() for run in runs_of], executor.keeper)
    telling = telling_failures(found)
    return Compared(
        plan=plan,
        runs=runs,
        failures={
            record.config: record.failure
            for record in found
            if record.failure is not None and record.number in telling
        },
        versions=introduction.versions,
        workload=workload,
    )
