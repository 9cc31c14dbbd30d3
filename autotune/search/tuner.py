"""One run: baseline, search, confirmation, answer."""

from __future__ import annotations

import dataclasses
import random
import time
from importlib import metadata
from typing import Any

from autotune.best_config import MachineRecord
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError, CommandError, NothingWorkedError
from autotune.machine import this_machine
from autotune.measurement import StartMode, figure
from autotune.search.answer import Result, make_best_config
from autotune.search.confirmation import choose
from autotune.search.definition import StudyDefinition
from autotune.search.knowledge import Knowledge
from autotune.search.plan import Plan, make_plan
from autotune.search.progress import Observer, Progress
from autotune.search.proposals import make_proposer
from autotune.search.storage import Phase, StudyStore, TrialRecord
from autotune.search.visits import run_through, visit
from autotune.trials.runner import Introduction, Runner
from autotune.trials.trial import TrialFailedError


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
            NothingWorkedError: No run of the confirmation succeeded.
            BadInputError: The study is of another command or machine, or an axis does not fit.
        """
        plan, baseline = self._measure_baseline()
        self._observer.note(
            f"{len(plan.configurations)} configurations; baseline "
            f"{figure(baseline.units_per_s)} {self._unit(baseline)}/s with {plan.baseline.summary}"
        )
        complete = self._search(plan, baseline)
        return self._answer(plan, complete)

    def _measure_baseline(self) -> tuple[Plan, TrialRecord]:
        """Measure the script as it is, in a fresh process: how training runs without tuning."""
        try:
            trial = self._runner.start_default()
        except TrialFailedError as error:
            raise CommandError(error.explain("the command")) from error
        with trial:
            assert self._runner.introduction is not None
            plan = make_plan(self._definition, self._runner.introduction)
            self._check_workload(plan, self._runner.introduction)
            number = self._store.begin(plan.baseline, Phase.BASELINE)
            try:
                outcome = run_through(trial, self._definition, deadline_s=self._deadline_s)
            except TrialFailedError as error:
                self._store.fail(number, error.failure)
                raise CommandError(error.explain("the baseline")) from error
        self._store.complete(number, outcome)
        return plan, self._store.records()[number]

    def _check_workload(self, plan: Plan, introduction: Introduction) -> None:
        """A study holds runs of one workload on one machine; anything else is another study."""
        facts: dict[str, Any] = {
            "command": list(self._definition.command),
            "machine": dataclasses.asdict(MachineRecord.of(this_machine())),
            "baseline": plan.baseline.to_dict(),
            "effective_batch_size": introduction.effective_batch_size,
        }
        stored = self._store.facts
        for name, now in facts.items():
            before = stored.get(name, now)
            if name == "machine":
                before = {**before, "hostname": now["hostname"]}
            if before != now:
                raise BadInputError(
                    f"study {self._store.name}: its {name} was {before}, and is {now} now: "
                    "start another study with --fresh"
                )
        versions = {name: metadata.version(name) for name in ("autotune", "optuna")}
        self._store.set_facts(
            **facts,
            versions={**introduction.versions, **versions},
            axes={name: list(values) for name, values in plan.space.axes.items()},
            num_configurations=len(plan.configurations),
        )

    def _search(self, plan: Plan, baseline: TrialRecord) -> bool:
        """Visit configurations; gives whether none that matters is left."""
        if plan.baseline not in Knowledge.of(self._store.records()).measured:
            self._probe_forking(plan, baseline)
        proposer = make_proposer(self._definition.sampler, plan.space.axes, self._definition.seed)
        num_visits = 0
        while True:
            knowledge = Knowledge.of(self._store.records())
            candidates = [
                config
                for config in plan.configurations
                if config not in knowledge.measured and not knowledge.rules_out(config)
            ]
            self._show(plan, baseline, knowledge, len(candidates), Phase.SEARCH)
            if not candidates:
                return True
            if num_visits == self._definition.max_trials:
                return False
            if self._left_s() < self._confirmation_s(baseline):
                return False
            config = proposer.propose(candidates, knowledge.measured, knowledge.bound)
            self._visit(config, Phase.SEARCH, knowledge.incumbent)
            num_visits += 1

    def _probe_forking(self, plan: Plan, baseline: TrialRecord) -> None:
        """Measure the baseline as trials of the search are: does forking work, and agree?"""
        mode = self._runner.mode
        record = self._visit(plan.baseline, Phase.PROBE, 0.0)
        if record.failure is not None and mode is StartMode.FORK:
            self._runner.give_up_forking(f"a forked trial failed: {record.failure.message}")
            record = self._visit(plan.baseline, Phase.PROBE, 0.0)
        if self._runner.fresh_reason not in (None, "asked for"):
            self._observer.note(f"each trial starts afresh: {self._runner.fresh_reason}")
        elif record.start_mode is StartMode.FORK:
            self._observer.note(
                f"trials are forked: first batch after {record.start_up_s:.2f} s, where a fresh "
                f"process takes {baseline.start_up_s:.2f} s"
            )

    def _visit(self, config: ThroughputConfig, phase: Phase, incumbent: float) -> TrialRecord:
        number = self._store.begin(config, phase)
        try:
            with self._runner.start(config, self._runner.mode) as trial:
                outcome = visit(
                    trial, self._definition, incumbent=incumbent, deadline_s=self._deadline_s
                )
        except TrialFailedError as error:
            self._store.fail(number, error.failure)
            self._observer.note(f"{config.summary}: {error.failure.cause}: {error}")
        else:
            self._store.complete(number, outcome)
        return self._store.records()[number]

    def _confirm(self, plan: Plan, baseline: TrialRecord) -> list[TrialRecord]:
        """Run finalists and baseline in fresh processes, in rounds of changing order."""
        knowledge = Knowledge.of(self._store.records())
        finalists = knowledge.finalists(plan.baseline, self._num_finalists(baseline))
        if not finalists:
            raise NothingWorkedError(
                "no configuration beside the baseline could be measured: give more time with "
                "--budget, or see the causes with `autotune show`"
            )
        order = [plan.baseline, *finalists]
        shuffle = random.Random(self._definition.seed).shuffle
        confirmed: list[TrialRecord] = []
        self._observer.note(
            f"confirming {len(finalists)} finalists and the baseline in fresh processes"
        )
        for round_number in range(1, self._definition.confirm_rounds + 1):
            started_s = time.monotonic()
            shuffle(order)
            for config in tuple(order):
                record = self._confirm_once(config, round_number)
                confirmed.append(record)
                if record.failure is not None:
                    order.remove(config)
                self._show(plan, baseline, knowledge, 0, Phase.CONFIRM)
            if self._left_s() < time.monotonic() - started_s:
                break
        return confirmed

    def _confirm_once(self, config: ThroughputConfig, round_number: int) -> TrialRecord:
        number = self._store.begin(config, Phase.CONFIRM, round_number=round_number)
        try:
            with self._runner.start(config, StartMode.FRESH) as trial:
                outcome = run_through(trial, self._definition, deadline_s=self._deadline_s)
        except TrialFailedError as error:
            self._store.fail(number, error.failure)
            self._observer.note(f"{config.summary}: {error.failure.cause}: {error}")
        else:
            self._store.complete(number, outcome)
        return self._store.records()[number]

    def _num_finalists(self, baseline: TrialRecord) -> int:
        """As many as asked for, or as fit in the time that is left; at least one."""
        rounds = self._left_s() / (self._definition.confirm_rounds * _run_s(baseline))
        return max(1, min(self._definition.num_finalists, int(rounds) - 1))

    def _confirmation_s(self, baseline: TrialRecord) -> float:
        """Time kept for the confirmation: what it takes, but never most of the budget."""
        runs = (self._definition.num_finalists + 1) * self._definition.confirm_rounds
        return min(runs * _run_s(baseline), 0.5 * self._definition.budget_s)

    def _answer(self, plan: Plan, complete: bool) -> Result:
        baseline = next(r for r in self._store.records()[::-1] if r.phase is Phase.BASELINE)
        # The host's memory and threads are no part of a fresh training run.
        self._runner.close()
        confirmed = self._confirm(plan, baseline)
        failed = {record.config for record in confirmed if record.failure is not None}
        runs: dict[ThroughputConfig, list[TrialRecord]] = {}
        for record in confirmed:
            if record.config not in failed:
                runs.setdefault(record.config, []).append(record)
        if plan.baseline not in runs or len(runs) < 2:
            raise NothingWorkedError(
                "no configuration worked in a fresh process: see the causes with `autotune show`"
            )
        choice = choose(
            {config: [record.units_per_s for record in found] for config, found in runs.items()},
            plan.baseline,
        )
        best = make_best_config(
            choice,
            runs,
            baseline=plan.baseline,
            definition=self._definition,
            storage=self._storage,
            store=self._store,
        )
        records = self._store.records()
        knowledge = Knowledge.of(records)
        result = Result(
            best=best,
            num_configurations=len(plan.configurations),
            num_measured=sum(config in knowledge.measured for config in plan.configurations),
            num_ruled_out=sum(
                knowledge.rules_out(config)
                for config in plan.configurations
                if config not in knowledge.measured
            ),
            num_failed=sum(record.failure is not None for record in records),
            num_disturbed=sum(r.measurement.num_disturbed for r in records if r.measurement),
            start_mode=self._runner.mode,
            fresh_reason=self._runner.fresh_reason,
            complete=complete,
        )
        self._store.set_facts(result=dataclasses.asdict(result))
        return result

    def _left_s(self) -> float:
        return self._deadline_s - time.monotonic()

    def _unit(self, record: TrialRecord) -> str:
        return record.unit or "samples"

    def _show(
        self,
        plan: Plan,
        baseline: TrialRecord,
        knowledge: Knowledge,
        num_candidates: int,
        phase: Phase,
    ) -> None:
        measured = {
            c: knowledge.measured[c] for c in plan.configurations if c in knowledge.measured
        }
        best = max(measured, key=lambda config: measured[config], default=plan.baseline)
        num_settled = len(plan.configurations) - len(measured) - num_candidates
        self._observer.update(
            Progress(
                num_configurations=len(plan.configurations),
                num_measured=len(measured),
                num_ruled_out=num_settled if phase is Phase.SEARCH else 0,
                baseline=baseline.units_per_s,
                best=measured.get(best, baseline.units_per_s),
                best_config=best,
                left_s=max(0.0, self._left_s()),
                phase=phase,
                unit=self._unit(baseline),
            )
        )


def _run_s(baseline: TrialRecord) -> float:
    """What a confirming run takes: as long as the baseline's, its start included."""
    assert baseline.duration_s is not None
    return baseline.duration_s
