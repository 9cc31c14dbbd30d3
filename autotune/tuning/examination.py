"""What a run would do with a command, found by starting it without searching anything."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from autotune.measurement import Measurement, StartMode
from autotune.study.definition import StudyDefinition
from autotune.system.load import QuietKeeper
from autotune.trials.runner import Runner
from autotune.trials.trial import TrialFailedError
from autotune.tuning.plan import Estimate, Plan, estimate, make_plan, with_fitting_axes
from autotune.tuning.trial_runs import Limits, run_through


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found.

    Attributes:
        plan: What would be searched, and what not and why.
        baseline: A few seconds of the command as it is.
        unit: What the script counts where that is not the sample.
        start_up_s: Seconds from a cold start to the first batch.
        ready_s: The same of a forked trial; None where trials are not forked.
        cold_start_reason: Why they are not; None where they are.
        problems: Settings of which a changed value fails, with what it says; looked for only where
            trials are forked, and so take next to no time.
        expected: What a run would take.
    """

    plan: Plan
    baseline: Measurement
    unit: str | None
    start_up_s: float
    ready_s: float | None
    cold_start_reason: str | None
    problems: Mapping[str, str]
    expected: Estimate


def examine(definition: StudyDefinition, runner: Runner) -> Findings:
    """Start the command as training would, and once more to fork a trial from it.

    Raises:
        TrialFailedError: The command does not get as far as a few steps.
        BadInputError: An axis does not fit what the script asks for.
    """
    runner.end_s = time.monotonic() + definition.budget_s
    with runner.start_default() as trial:
        assert runner.introduction is not None
        plan = make_plan(definition, runner.introduction, trial.facts)
        limits = Limits(
            step_s=None,
            first_step_deadline_s=runner.patience_s,
            end_s=time.monotonic(),
        )
        outcome = run_through(trial, definition, limits=limits, keeper=QuietKeeper(0.0))
        plan = with_fitting_axes(plan, definition, outcome.samples)
    ready_s = None
    if runner.mode is StartMode.FORK:
        try:
            with runner.start(plan.baseline, StartMode.FORK) as forked:
                ready_s = forked.start_up_s if forked.mode is StartMode.FORK else None
        except TrialFailedError as error:
            # It ran afresh, so that it is the fork that it cannot stand.
            runner.give_up_forking(error.failure.message)
    return Findings(
        plan=plan,
        baseline=outcome.measurement,
        unit=outcome.unit,
        start_up_s=outcome.start_up_s,
        ready_s=ready_s,
        cold_start_reason=runner.fresh_reason,
        problems={} if ready_s is None else _find_problems(plan, runner),
        expected=estimate(
            definition,
            plan,
            outcome.measurement,
            start_up_s=outcome.start_up_s,
            forks=ready_s is not None,
        ),
    )


def _find_problems(plan: Plan, runner: Runner) -> dict[str, str]:
    """Try one other value of each axis: a script may ignore a setting, or fail with it."""
    problems: dict[str, str] = {}
    for name, values in plan.space.axes.items():
        others = (plan.space.changed(plan.baseline, **{name: value}) for value in values)
        changed = next((config for config in others if config != plan.baseline), None)
        if changed is None and "num_workers" in problems:
            # Without workers there is nothing to prefetch.
            problems[name] = problems["num_workers"]
        if changed is None or runner.mode is not StartMode.FORK:
            continue
        try:
            runner.start(changed, StartMode.FORK).close()
        except TrialFailedError as error:
            problems[name] = error.failure.message
    return problems
