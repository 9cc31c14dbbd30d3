"""The baseline: the script as it is, and whether its first epoch is like those that follow."""

from __future__ import annotations

import dataclasses

from autotune.analysis.later_epochs import find_later_epochs
from autotune.best_config import WorkloadRecord
from autotune.blocks import Revisit
from autotune.errors import CommandError
from autotune.measurement import Failure, FailureCause, epochs_differ
from autotune.study.records import Outcome, Phase, TrialRecord
from autotune.system.machine import this_machine
from autotune.trials.trial import Trial, TrialFailedError
from autotune.tuning.executor import Calibration, Executor
from autotune.tuning.plan import Plan
from autotune.tuning.trial_runs import run_through

# A start that takes so many times as long as the baseline's is given up.
_START_PATIENCE = 10.0
_LEAST_START_DEADLINE_S = 30.0
# Once the time is up, so many times.
_LATE_START_PATIENCE = 3.0
# Of a GPU's memory, what equal trials may take more or less.
_SHARE_SLACK = 0.01
# The end of the first epoch is waited for so long at most, and for so much of the budget.
_FIRST_EPOCH_S, _FIRST_EPOCH_SHARE = 5.0, 0.05
# Loading some samples twice takes about so long at most.
_REVISIT_S = 3.0


def measure_baseline(executor: Executor, plan: Plan, trial: Trial) -> TrialRecord:
    """Measure the script as it is, in a fresh process: how training runs without tuning.

    Where later epochs cost something else than the first one, all trials are told to run as these
    do, and the baseline is measured once more.

    Raises:
        CommandError: It cannot be measured.
    """
    record = _measure(executor, plan, trial)
    if record is None:
        trial.close()
        try:
            other = executor.runner.start_default()
        except TrialFailedError as error:
            raise CommandError(error.explain("the command")) from error
        with other:
            record = _measure(executor, plan, other)
    assert record is not None
    return record


def remember_later_epochs(executor: Executor) -> None:
    """Have trials run as an earlier run of this study had them run."""
    facts = executor.store.facts
    executor.runner.num_repeated = facts.get("num_repeated", 0)
    first_epoch_s = facts.get("first_epoch_s", 0.0)
    executor.calibrate(dataclasses.replace(executor.calibration, first_epoch_s=first_epoch_s))


def _measure(executor: Executor, plan: Plan, trial: Trial) -> TrialRecord | None:
    """One run of the baseline; None where it is to be measured again, as later epochs run."""
    store, runner, observer = executor.store, executor.runner, executor.observer
    number = store.begin(plan.baseline, Phase.BASELINE)
    patience_s = executor.definition.start_deadline_s
    first_epoch_s = executor.calibration.first_epoch_s or min(
        _FIRST_EPOCH_S, _FIRST_EPOCH_SHARE * executor.definition.budget_s
    )
    executor.calibrate(dataclasses.replace(executor.calibration, first_epoch_s=first_epoch_s))
    try:
        # Before the loop has loaded many samples.
        again = _revisit(executor, trial)
        outcome = run_through(
            trial,
            executor.definition,
            limits=executor.limits(plan.baseline),
            keeper=executor.keeper,
        )
        finite = trial.is_finite(deadline_s=runner.patience_s)
    except TrialFailedError as error:
        store.fail(number, error.failure, trial.mode, trial.active_s)
        raise CommandError(error.explain("the baseline")) from error
    if not runner.num_repeated and _later_epochs_are_cheap(executor, trial, outcome, again):
        message = "what was measured is the first epoch, which later ones are not like"
        failure = Failure(cause=FailureCause.INTERRUPTED, message=message)
        store.fail(number, failure, trial.mode, trial.active_s)
        return None
    store.complete(number, outcome)
    if store.records()[number].measurement is None:
        raise CommandError(
            "the baseline: other machines took its trial for dead, since nothing was heard of it "
            "for minutes: the same command goes on"
        )
    if epochs_differ(outcome.measurement.later_epochs_ratio):
        ratio = outcome.measurement.later_epochs_ratio
        observer.note(
            f"the epochs after the first run at {ratio:.3g} times its rate: what is measured are "
            "these; the first epoch takes longer or shorter than stated"
        )
        store.set_facts(first_epoch_s=first_epoch_s)
    else:
        first_epoch_s = 0.0
    share = outcome.measurement.device_memory_share
    headroom = executor.calibration.gpu_headroom
    if share is not None:
        headroom = min(headroom, max(0.0, 1 - share - _SHARE_SLACK))
    executor.calibrate(
        Calibration(
            gpu_headroom=headroom,
            baseline=plan.baseline,
            sample_s=1 / outcome.measurement.samples_per_s,
            warm_up_s=outcome.measurement.warm_up_s,
            first_epoch_s=first_epoch_s,
            expects_finite=finite is True,
        )
    )
    if finite is False:
        observer.note(
            "parameters are NaN or infinite with the baseline already: whether other settings "
            "make the training diverge is not looked at"
        )
    size = WorkloadRecord(
        samples_per_epoch=trial.facts.samples_per_epoch, num_parameters=trial.facts.num_parameters
    )
    store.set_facts(workload_size=dataclasses.asdict(size))
    # From here on it is known what a start takes.
    runner.start_deadline_s = min(
        patience_s, max(_LEAST_START_DEADLINE_S, _START_PATIENCE * trial.ready_s)
    )
    runner.least_patience_s = max(runner.least_patience_s, _LATE_START_PATIENCE * trial.ready_s)
    return store.records()[number]


def _revisit(executor: Executor, trial: Trial) -> Revisit | None:
    """What loading a sample again takes."""
    if executor.runner.num_repeated:
        return None
    return trial.revisit(deadline_s=_REVISIT_S + executor.runner.patience_s)


def _later_epochs_are_cheap(
    executor: Executor, trial: Trial, outcome: Outcome, again: Revisit | None
) -> bool:
    """Say where samples load faster the second time; whether trials are to run like that."""
    later = find_later_epochs(
        again,
        samples_per_s=outcome.measurement.samples_per_s,
        samples_per_epoch=trial.facts.samples_per_epoch,
        memory_bytes=this_machine().memory_bytes,
    )
    if later is None:
        return False
    executor.observer.note(later.note)
    executor.runner.num_repeated = later.num_repeated
    executor.store.set_facts(num_repeated=later.num_repeated)
    return bool(later.num_repeated)
