"""One run: baseline, search, confirmation, answer."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from importlib import metadata

from autotune.best_config import MachineRecord
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError, CommandError, NothingWorkedError
from autotune.machine import this_machine
from autotune.measurement import FailureCause, StartMode, figure
from autotune.search.answer import (
    Result,
    complete_rounds,
    make_best_config,
    stored_result,
)
from autotune.search.confirmation import choose
from autotune.search.definition import StudyDefinition
from autotune.search.knowledge import Knowledge
from autotune.search.plan import Plan, make_plan
from autotune.search.progress import Observer, Progress
from autotune.search.proposals import make_proposer
from autotune.search.study import Outcome, Phase, StudyStore, TrialRecord
from autotune.search.visits import Limits, run_through, visit
from autotune.trials.runner import Runner
from autotune.trials.trial import Trial, TrialFailedError

# A start that takes so many times as long as the baseline's is given up.
_START_PATIENCE = 10.0
_LEAST_START_DEADLINE_S = 30.0


class Tuner:
    """Runs one study with one runner and one store.

    Args:
        definition: What is asked for.
        storage: URL of the storage, for the record.
        store: Where trials are kept; may hold trials of earlier runs.
        runner: Starts the trials.
        observer: Is told what happens.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        *,
        storage: str,
        store: StudyStore,
        runner: Runner,
        observer: Observer,
    ) -> None:
        self._definition = definition
        self._storage = storage
        self._store = store
        self._runner = runner
        self._observer = observer
        self._deadline_s = time.monotonic() + definition.budget_s

    def run(self) -> Result:
        """Measure until the space is settled or the budget is spent, and choose.

        Raises:
            CommandError: The baseline cannot be measured.
            NothingWorkedError: There was time for nothing beside the baseline.
            BadInputError: The study is of another command or machine, or an axis does not fit.
        """
        try:
            trial = self._runner.start_default()
        except TrialFailedError as error:
            raise CommandError(error.explain("the command")) from error
        with trial:
            plan = self._plan()
            earlier = stored_result(self._store)
            if earlier is not None:
                self._observer.note("this study is complete: nothing is measured again")
                return earlier
            baseline = self._measure_baseline(trial, plan)
        self._observer.note(
            f"{len(plan.configurations)} configurations; baseline "
            f"{figure(baseline.units_per_s)} {_unit(baseline)}/s with {plan.baseline.summary}"
        )
        complete = self._search(plan, baseline)
        return self._answer(plan, baseline, complete)

    def _plan(self) -> Plan:
        """What is to be searched; a study holds runs of one workload on one machine only.

        What an earlier result depended on is compared, and the result forgotten where it changed.
        """
        introduction = self._runner.introduction
        assert introduction is not None
        plan = make_plan(self._definition, introduction)
        machine = MachineRecord.of(this_machine())
        workload = {
            "command": list(self._definition.command),
            "machine": machine.fingerprint,
            "baseline": plan.baseline.to_dict(),
            "effective_batch_size": introduction.effective_batch_size,
        }
        stored = self._store.facts
        for name, now in workload.items():
            before = stored.get("workload", workload).get(name)
            if before != now:
                raise BadInputError(
                    f"study {self._store.name}: its {name} was {before}, and is {now} now: "
                    "start another study with --fresh"
                )
        versions = {name: metadata.version(name) for name in ("autotune", "optuna")}
        conditions = {
            "versions": {**introduction.versions, **versions},
            "config_path": introduction.config_path,
            "axes": {name: list(values) for name, values in plan.space.axes.items()},
        }
        if any(stored.get(name) != now for name, now in conditions.items()):
            self._store.set_facts(result=None)
        self._store.set_facts(
            workload=workload,
            **workload | {"machine": dataclasses.asdict(machine)},
            **conditions,
            num_configurations=len(plan.configurations),
        )
        return plan

    def _measure_baseline(self, trial: Trial, plan: Plan) -> TrialRecord:
        """Measure the script as it is, in a fresh process: how training runs without tuning."""
        number = self._store.begin(plan.baseline, Phase.BASELINE)
        patience_s = self._definition.start_deadline_s
        limits = Limits(step_s=None, first_step_deadline_s=patience_s, end_s=self._deadline_s)
        try:
            outcome = run_through(trial, self._definition, limits=limits)
        except TrialFailedError as error:
            self._store.fail(number, error.failure, trial.mode, trial.age_s)
            raise CommandError(error.explain("the baseline")) from error
        self._store.complete(number, outcome)
        # From here on it is known what a start takes.
        self._runner.start_deadline_s = min(
            patience_s, max(_LEAST_START_DEADLINE_S, _START_PATIENCE * outcome.start_up_s)
        )
        return self._store.records()[number]

    def _search(self, plan: Plan, baseline: TrialRecord) -> bool:
        """Visit configurations; gives whether none that matters is left."""
        self._probe_forking(plan, baseline)
        proposer = make_proposer(self._definition.sampler, plan.space.axes, self._definition.seed)
        num_visits = 0
        while True:
            knowledge = self._knowledge(plan)
            candidates = [
                config
                for config in plan.configurations
                if config not in knowledge.measured and not knowledge.rules_out(config)
            ]
            self._show(plan, baseline, knowledge, Phase.SEARCH)
            if not candidates:
                return True
            if num_visits == self._definition.max_trials:
                return False
            if self._left_s() < self._confirmation_s(baseline):
                return False
            config = proposer.propose(candidates, knowledge.measured, knowledge.bound)
            self._visit(config, Phase.SEARCH, baseline, knowledge.incumbent)
            num_visits += 1

    def _probe_forking(self, plan: Plan, baseline: TrialRecord) -> None:
        """Measure the baseline as trials of the search are; give up forking where it fails."""
        known = self._knowledge(plan).measured.get(plan.baseline)
        failed_before = self._store.facts.get("fork_failure")
        if failed_before and self._runner.mode is StartMode.FORK:
            self._runner.give_up_forking(failed_before)
        elif known is None:
            mode = self._runner.mode
            record = self._visit(plan.baseline, Phase.PROBE, baseline, 0.0)
            if record.failure is not None and mode is StartMode.FORK:
                reason = f"a forked trial failed: {record.failure.message}"
                self._store.set_facts(fork_failure=reason)
                self._runner.give_up_forking(reason)
                record = self._visit(plan.baseline, Phase.PROBE, baseline, 0.0)
            if record.start_mode is StartMode.FORK and record.start_up_s is not None:
                self._observer.note(
                    f"trials are forked: first batch after {record.start_up_s:.2f} s, where a "
                    f"fresh process takes {baseline.start_up_s:.2f} s"
                )
        if self._runner.fresh_reason not in (None, "asked for"):
            self._observer.note(f"each trial starts afresh: {self._runner.fresh_reason}")

    def _visit(
        self, config: ThroughputConfig, phase: Phase, baseline: TrialRecord, incumbent: float
    ) -> TrialRecord:
        def measure(trial: Trial, limits: Limits) -> Outcome:
            return visit(trial, self._definition, incumbent=incumbent, limits=limits)

        return self._run_trial(config, phase, self._runner.mode, baseline, measure)

    def _run_trial(
        self,
        config: ThroughputConfig,
        phase: Phase,
        mode: StartMode,
        baseline: TrialRecord,
        measure: Callable[[Trial, Limits], Outcome],
        **attributes: int,
    ) -> TrialRecord:
        """Start a trial, measure it, end it, and store what came of it."""
        assert baseline.measurement is not None
        limits = Limits(
            step_s=config.batch_size / baseline.measurement.samples_per_s,
            first_step_deadline_s=self._runner.start_deadline_s,
            end_s=self._deadline_s,
        )
        number = self._store.begin(config, phase, **attributes)
        started_s = time.monotonic()
        try:
            with self._runner.start(config, mode) as trial:
                mode = trial.mode
                outcome = measure(trial, limits)
        except TrialFailedError as error:
            self._store.fail(number, error.failure, mode, time.monotonic() - started_s)
            self._observer.note(f"{config.summary}: {error.failure.cause}: {error}")
        else:
            self._store.complete(number, outcome)
        return self._store.records()[number]

    def _confirm(self, plan: Plan, baseline: TrialRecord, complete: bool) -> list[TrialRecord]:
        """Run finalists and baseline in fresh processes, in rounds of changing order."""
        knowledge = self._knowledge(plan)
        finalists = knowledge.finalists(plan.baseline, self._num_finalists(baseline))
        if not finalists and not complete:
            raise NothingWorkedError(
                "no configuration beside the baseline could be measured in the time given: give "
                f"more with --budget (a run of the baseline alone took {_run_s(baseline):.0f} s"
                + (", disturbed by other processes)" if _is_disturbed(baseline) else ")")
            )

        def measure(trial: Trial, limits: Limits) -> Outcome:
            return run_through(trial, self._definition, limits=limits)

        order = [plan.baseline, *finalists]
        shuffle = random.Random(self._definition.seed).shuffle
        confirmed: list[TrialRecord] = []
        self._observer.note(
            f"confirming {len(finalists)} finalists and the baseline in fresh processes"
        )
        for number in range(1, self._definition.confirm_rounds + 1):
            started_s = time.monotonic()
            shuffle(order)
            for config in tuple(order):
                record = self._run_trial(
                    config,
                    Phase.CONFIRM,
                    StartMode.FRESH,
                    baseline,
                    measure,
                    round_number=number,
                )
                confirmed.append(record)
                if record.failure is not None and config != plan.baseline:
                    order.remove(config)
                self._show(plan, baseline, knowledge, Phase.CONFIRM)
            if self._left_s() < time.monotonic() - started_s:
                break
        return confirmed

    def _num_finalists(self, baseline: TrialRecord) -> int:
        """As many as asked for, or as fit in the time that is left; at least one."""
        num_runs = self._left_s() / (self._definition.confirm_rounds * _run_s(baseline))
        return max(1, min(self._definition.num_finalists, int(num_runs) - 1))

    def _confirmation_s(self, baseline: TrialRecord) -> float:
        """Time kept for the confirmation: what it takes, but never most of the budget."""
        runs = (self._definition.num_finalists + 1) * self._definition.confirm_rounds
        return min(runs * _run_s(baseline), 0.5 * self._definition.budget_s)

    def _answer(self, plan: Plan, baseline: TrialRecord, complete: bool) -> Result:
        # The host's memory and threads are no part of a fresh training run.
        self._runner.close()
        runs = complete_rounds(self._confirm(plan, baseline, complete), plan.baseline)
        if not runs:
            raise NothingWorkedError(
                "the baseline failed in every round of the confirmation: see the causes with "
                "`autotune show`"
            )
        rates = {config: [record.units_per_s for record in found] for config, found in runs.items()}
        best = make_best_config(
            choose(rates, plan.baseline),
            runs,
            baseline=plan.baseline,
            definition=self._definition,
            storage=self._storage,
            store=self._store,
        )
        knowledge = self._knowledge(plan)
        records = self._store.records()
        result = Result(
            best=best,
            num_configurations=len(plan.configurations),
            num_measured=_num_measured(plan, knowledge),
            num_ruled_out=_num_ruled_out(plan, knowledge),
            num_rounds=len(runs[plan.baseline]),
            num_failed=sum(
                record.failure is not None and record.failure.cause is not FailureCause.INTERRUPTED
                for record in records
            ),
            num_disturbed=sum(r.measurement.num_disturbed for r in records if r.measurement),
            num_disturbed_runs=sum(_is_disturbed(run) for found in runs.values() for run in found),
            config_path=self._store.facts["config_path"],
            start_mode=self._runner.mode,
            fresh_reason=self._runner.fresh_reason,
            complete=complete,
        )
        self._store.set_facts(result=dataclasses.asdict(result))
        return result

    def _knowledge(self, plan: Plan) -> Knowledge:
        """What is known of this plan's configurations; a study may hold others as well."""
        searched = {*plan.configurations, plan.baseline}
        return Knowledge.of(r for r in self._store.records() if r.config in searched)

    def _left_s(self) -> float:
        return self._deadline_s - time.monotonic()

    def _show(self, plan: Plan, baseline: TrialRecord, knowledge: Knowledge, phase: Phase) -> None:
        measured = knowledge.measured
        best = max(measured, key=lambda config: measured[config], default=plan.baseline)
        self._observer.update(
            Progress(
                num_configurations=len(plan.configurations),
                num_measured=_num_measured(plan, knowledge),
                num_ruled_out=_num_ruled_out(plan, knowledge),
                baseline=baseline.units_per_s,
                best=measured.get(best, baseline.units_per_s),
                best_config=best,
                left_s=max(0.0, self._left_s()),
                phase=phase,
                unit=_unit(baseline),
            )
        )


def _num_measured(plan: Plan, knowledge: Knowledge) -> int:
    return sum(config in knowledge.measured for config in plan.configurations)


def _num_ruled_out(plan: Plan, knowledge: Knowledge) -> int:
    unvisited = [config for config in plan.configurations if config not in knowledge.measured]
    return sum(knowledge.rules_out(config) for config in unvisited)


def _unit(record: TrialRecord) -> str:
    return record.unit or "samples"


def _is_disturbed(record: TrialRecord) -> bool:
    """Whether other processes used the cores all the time that a trial was measured."""
    return all(sample.disturbed for sample in record.samples)


def _run_s(baseline: TrialRecord) -> float:
    """What a confirming run takes: as long as the baseline's, its start included."""
    assert baseline.duration_s is not None
    return baseline.duration_s
