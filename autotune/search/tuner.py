"""One run: baseline, search, confirmation, answer."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib import metadata

from autotune.best_config import MachineRecord
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError, CommandError, NothingWorkedError
from autotune.machine import this_machine
from autotune.measurement import FailureCause, StartMode, figure
from autotune.search.adaptive import HORIZON_S, AdaptiveSearch, Standing
from autotune.search.answer import (
    Result,
    RunnerUp,
    fork_differences,
    make_best_config,
    stored_result,
)
from autotune.search.bottleneck import diagnose
from autotune.search.confirmation import choose
from autotune.search.definition import SamplerName, StudyDefinition
from autotune.search.disturbance import (
    check_before_start,
    check_confirmed,
    disturbed_by,
    is_disturbed_throughout,
)
from autotune.search.finals import Finals, complete_rounds, confirmation_s
from autotune.search.knowledge import Knowledge
from autotune.search.live import LiveBench, recall
from autotune.search.plan import Plan, make_plan, widen
from autotune.search.progress import Observer, Progress
from autotune.search.proposals import make_proposer
from autotune.search.recorder import Recorder
from autotune.search.spread import BlockSpread
from autotune.search.study import Outcome, Phase, StudyStore, TrialRecord
from autotune.search.visits import Limits, run_through, visit
from autotune.trials.memory import memory_left_bytes
from autotune.trials.runner import Runner
from autotune.trials.trial import Trial, TrialFailedError

# A start that takes so many times as long as the baseline's is given up.
_START_PATIENCE = 10.0
_LEAST_START_DEADLINE_S = 30.0
# Training goes on for at least so many optimizer steps.
_HORIZON_STEPS = 1000
# Of the memory that is left, what a configuration beyond the first space may take.
_MEMORY_SHARE = 0.5
_NUM_RUNNERS_UP = 3
# Quantile of the normal distribution.
_TWO_SIDED_95 = 1.96
# Progress of the adaptive search takes a moment to reckon, and is shown this often at most.
_SHOWN_EVERY_S = 2.0


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
        self._earlier: tuple[TrialRecord, ...] = ()
        self._started_s = time.monotonic()
        self._shown_at_s = -math.inf
        self._recorder = Recorder(definition, store=store, runner=runner, observer=observer)

    def run(self) -> Result:
        """Measure until the space is settled or the budget is spent, and choose.

        Raises:
            CommandError: The baseline cannot be measured.
            NothingWorkedError: There was time for nothing beside the baseline.
            BadInputError: The study is of another command or machine, or an axis does not fit.
            BusyMachineError: Other processes leave too little of the machine.
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
            # The trial stands still: what is seen now are others.
            note = check_before_start(self._recorder.keeper, allow_busy=self._definition.allow_busy)
            if note:
                self._observer.note(note)
            baseline = self._measure_baseline(trial, plan)
        relative_error = BlockSpread.of([baseline]).relative_error(baseline)
        self._observer.note(
            f"{len(plan.configurations)} configurations; baseline "
            f"{figure(baseline.units_per_s, relative_error)} {_unit(baseline)}/s with "
            f"{plan.baseline.summary}"
        )
        self._probe_forking(plan, baseline)
        self._earlier = self._store.records_of_similar()
        if self._earlier and self._definition.sampler is SamplerName.AUTO:
            self._observer.note("an earlier study of this command serves as a first guess")
        if self._definition.sampler is SamplerName.AUTO:
            plan, finalists, complete = self._search_adaptively(plan, baseline)
        else:
            complete = self._search(plan, baseline)
            finalists = None
        runs = self._confirm(plan, baseline, finalists, complete)
        result = self._answer(plan, runs, complete)
        self._store.set_facts(result=dataclasses.asdict(result))
        return result

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
        recorder = self._recorder
        try:
            outcome = run_through(
                trial,
                self._definition,
                limits=recorder.limits(plan.baseline),
                keeper=recorder.keeper,
            )
        except TrialFailedError as error:
            self._store.fail(number, error.failure, trial.mode, trial.active_s)
            raise CommandError(error.explain("the baseline")) from error
        self._store.complete(number, outcome)
        # From here on it is known what a start takes, and a step.
        recorder.sample_s = 1 / outcome.measurement.samples_per_s
        self._runner.start_deadline_s = min(
            patience_s, max(_LEAST_START_DEADLINE_S, _START_PATIENCE * outcome.start_up_s)
        )
        return self._store.records()[number]

    def _search(self, plan: Plan, baseline: TrialRecord) -> bool:
        """Visit configurations one by one; gives whether none that matters is left."""
        proposer = make_proposer(self._definition.sampler, plan.space.axes, self._definition.seed)
        num_visits = 0
        reserved_s = confirmation_s(
            self._definition, baseline, num_finalists=self._definition.num_finalists
        )
        while True:
            knowledge = self._knowledge(plan)
            candidates = [
                config
                for config in plan.configurations
                if config not in knowledge.measured and not knowledge.rules_out(config)
            ]
            if not candidates and not self._definition.allow_busy:
                # A second look at what something disturbed from beginning to end.
                candidates = list(knowledge.in_doubt)
            self._show(plan, baseline, knowledge, Phase.SEARCH)
            if not candidates:
                return True
            if num_visits == self._definition.max_trials:
                return False
            if self._recorder.left_s < reserved_s:
                return False
            config = proposer.propose(candidates, knowledge.measured, knowledge.bound)
            self._visit(config, Phase.SEARCH, baseline, knowledge.incumbent)
            num_visits += 1

    def _search_adaptively(
        self, plan: Plan, baseline: TrialRecord
    ) -> tuple[Plan, tuple[ThroughputConfig, ...], bool]:
        """Measure where that is expected to gain the most; widen axes at whose end the best lies.

        Gives the plan, the best configuration beside the baseline, and whether nothing was left
        that is worth its time.
        """
        reserved_s = confirmation_s(self._definition, baseline, num_finalists=1)
        while True:
            with LiveBench(
                self._definition,
                store=self._store,
                runner=self._runner,
                recorder=self._recorder,
            ) as bench:
                search = self._adaptive(plan, bench, baseline)
                complete = search.run(
                    bench.now_s + self._recorder.left_s - reserved_s,
                    max_visits=self._definition.max_trials,
                    after_each=functools.partial(self._show_standing, plan, baseline, search),
                )
            standings = search.standings()
            best = standings[0].config
            rates = {found.config: found.units_per_s for found in standings}
            wider = widen(plan, self._definition, best, rates)
            if wider is None or not complete or not self._has_memory_for_more(best):
                others = [found.config for found in standings if found.config != plan.baseline]
                measured = self._knowledge(plan).measured
                return plan, tuple(c for c in others if measured.get(c))[:1], complete
            added = [
                name for name in wider.space.axes if wider.space.axes[name] != plan.space.axes[name]
            ]
            self._observer.note(
                f"the best so far, {best.summary}, lies at the end of an axis: "
                + ", ".join(f"{name} {wider.space.axes[name][-1]}" for name in added)
                + " is tried, too"
            )
            plan = wider
            self._store.set_facts(num_configurations=len(plan.configurations))

    def _adaptive(self, plan: Plan, bench: LiveBench, baseline: TrialRecord) -> AdaptiveSearch:
        """The adaptive search, with all that was measured so far.

        What an earlier study of the same loop found is where it starts from, and no more.
        """
        assert baseline.measurement is not None
        make = functools.partial(
            AdaptiveSearch,
            plan.configurations,
            plan.baseline,
            bench,
            usable_cores=this_machine().usable_cores,
            block_s=self._definition.block_s,
            horizon_s=max(
                HORIZON_S, _HORIZON_STEPS * baseline.measurement.seconds_per_optimizer_step
            ),
            seed=self._definition.seed,
        )
        earlier = make()
        earlier.learn(recall(self._earlier))
        search = make(prior=earlier.beliefs() if earlier.num_visited else None)
        search.learn(recall(self._store.records()))
        return search

    def _has_memory_for_more(self, config: ThroughputConfig) -> bool:
        """Whether twice of what a configuration took would fit."""
        held = [
            record.measurement.peak_memory_bytes + record.measurement.shared_memory_bytes
            for record in self._store.records()
            if record.config == config and record.measurement is not None
        ]
        return 2 * max(held, default=0) <= _MEMORY_SHARE * memory_left_bytes()

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
            return visit(
                trial,
                self._definition,
                incumbent=incumbent,
                limits=limits,
                keeper=self._recorder.keeper,
            )

        return self._recorder.run(config, phase, measure)

    def _confirm(
        self,
        plan: Plan,
        baseline: TrialRecord,
        finalists: tuple[ThroughputConfig, ...] | None,
        complete: bool,
    ) -> dict[ThroughputConfig, list[TrialRecord]]:
        """The confirming runs that can be compared, by configuration, round by round."""
        # The host's memory and threads are no part of a fresh training run.
        self._runner.close()
        knowledge = self._knowledge(plan)
        finals = Finals(self._definition, self._recorder, self._store)
        if finalists is None:
            finalists = finals.choose(knowledge, plan.baseline, baseline)
        if not finalists and not complete:
            raise NothingWorkedError(
                "no configuration beside the baseline could be measured in the time given: give "
                f"more with --budget (a run of the baseline alone took {baseline.duration_s:.0f} s"
                + (", disturbed by other processes)" if is_disturbed_throughout(baseline) else ")")
            )
        side_by_side = finals.fit_together([plan.baseline, *finalists])
        how = (
            "side by side"
            if side_by_side
            else "one after another, since together they may not fit into memory"
        )
        self._observer.note(
            f"confirming {len(finalists)} finalist{'s' if len(finalists) != 1 else ''} and the "
            f"baseline in fresh processes, {how}"
        )
        confirmed = finals.confirm(
            [plan.baseline, *finalists],
            side_by_side=side_by_side,
            show=lambda: self._show(plan, baseline, knowledge, Phase.CONFIRM),
        )
        runs = complete_rounds(confirmed, plan.baseline)
        if not runs:
            raise NothingWorkedError(
                "the baseline failed in every round of the confirmation: see the causes with "
                "`autotune show`"
            )
        if not self._definition.allow_busy:
            check_confirmed(
                [run for found in runs.values() for run in found], self._recorder.keeper
            )
        return runs

    def _answer(
        self,
        plan: Plan,
        runs: Mapping[ThroughputConfig, Sequence[TrialRecord]],
        complete: bool,
    ) -> Result:
        """Choose by the confirming runs, and gather what is to be told."""
        rates = {config: [record.units_per_s for record in found] for config, found in runs.items()}
        choice = choose(rates, plan.baseline)
        best = make_best_config(
            choice,
            runs,
            baseline=plan.baseline,
            definition=self._definition,
            storage=self._storage,
            store=self._store,
        )
        knowledge = self._knowledge(plan)
        records = self._store.records()
        probability, runners_up = self._rank(plan, best.config, runs[plan.baseline][0])
        num_measured = sum(config in knowledge.measured for config in plan.configurations)
        searched = [r for r in records if r.phase in (Phase.SEARCH, Phase.PROBE)]
        spread = BlockSpread.of(records)
        return Result(
            best=best,
            probability=probability,
            runners_up=runners_up,
            widened=self._widened(plan),
            tuning_s=time.monotonic() - self._started_s,
            num_configurations=len(plan.configurations),
            num_measured=num_measured,
            num_ruled_out=len(plan.configurations) - num_measured
            if complete
            else self._num_ruled_out(plan, knowledge),
            num_rounds=len(runs[plan.baseline]),
            num_failed=sum(
                record.failure is not None and record.failure.cause is not FailureCause.INTERRUPTED
                for record in records
            ),
            num_disturbed=sum(r.measurement.num_disturbed for r in records if r.measurement),
            num_disturbed_runs=sum(
                is_disturbed_throughout(run) for found in runs.values() for run in found
            ),
            disturbed_by=disturbed_by(records, self._recorder.keeper),
            waited_s=self._recorder.keeper.waited_s,
            fork_differences=fork_differences(choice, records, (plan.baseline, best.config)),
            baseline_bottleneck=diagnose(plan.baseline, runs[plan.baseline], searched),
            bottleneck=diagnose(best.config, runs[best.config], searched),
            unsteady=statistics.mean(map(spread.is_unsteady, runs[best.config])) > 0.5,
            config_path=self._store.facts["config_path"],
            start_mode=self._runner.mode,
            fresh_reason=self._runner.fresh_reason,
            complete=complete,
        )

    def _relative_error(self, config: ThroughputConfig, units_per_s: float | None) -> float | None:
        """How sure the rate of a visited configuration is."""
        records = self._store.records()
        found = [r for r in records if r.config == config and r.units_per_s == units_per_s]
        return BlockSpread.of(records).relative_error(found[-1]) if found else None

    def _knowledge(self, plan: Plan) -> Knowledge:
        """What is known of this plan's configurations; a study may hold others as well."""
        searched = {*plan.configurations, plan.baseline}
        return Knowledge.of(r for r in self._store.records() if r.config in searched)

    def _show(self, plan: Plan, baseline: TrialRecord, knowledge: Knowledge, phase: Phase) -> None:
        measured = knowledge.measured
        best = max(measured, key=lambda config: measured[config], default=plan.baseline)
        self._observer.update(
            Progress(
                num_configurations=len(plan.configurations),
                num_measured=_num_measured(plan, knowledge),
                num_ruled_out=self._num_ruled_out(plan, knowledge),
                baseline=baseline.units_per_s,
                best=measured.get(best, baseline.units_per_s),
                best_error=self._relative_error(best, measured.get(best)),
                best_config=best,
                probability=None,
                left_s=max(0.0, self._recorder.left_s),
                phase=phase,
                unit=_unit(baseline),
            )
        )

    def _show_standing(self, plan: Plan, baseline: TrialRecord, search: AdaptiveSearch) -> None:
        now_s = time.monotonic()
        if now_s < self._shown_at_s + _SHOWN_EVERY_S:
            return
        best, *_ = search.standings()
        self._observer.update(
            Progress(
                num_configurations=len(plan.configurations),
                num_measured=search.num_visited,
                num_ruled_out=0,
                baseline=best.units_per_s / math.exp(best.log_ratio),
                best=best.units_per_s,
                best_error=None,
                best_config=best.config,
                probability=best.probability,
                left_s=max(0.0, self._recorder.left_s),
                phase=Phase.SEARCH,
                unit=_unit(baseline),
            )
        )
        self._shown_at_s = time.monotonic()

    def _rank(
        self, plan: Plan, chosen: ThroughputConfig, baseline: TrialRecord
    ) -> tuple[float, tuple[RunnerUp, ...]]:
        """How probably the chosen settings are as good as any, and the next best ones."""
        # Only what was measured is looked at.
        bench = LiveBench(
            self._definition, store=self._store, runner=self._runner, recorder=self._recorder
        )
        from_chosen = dataclasses.replace(plan, baseline=chosen)
        standings = self._adaptive(from_chosen, bench, baseline).standings()
        [standing] = [found for found in standings if found.config == chosen]
        measured = self._knowledge(plan).measured
        told_already = (chosen, plan.baseline)
        others = [s for s in standings if s.config not in told_already and measured.get(s.config)]
        others.sort(key=lambda found: -found.log_ratio)
        return standing.probability, tuple(map(_runner_up, others[:_NUM_RUNNERS_UP]))

    def _widened(self, plan: Plan) -> tuple[str, ...]:
        assert self._runner.introduction is not None
        first = make_plan(self._definition, self._runner.introduction)
        return tuple(
            name for name, values in plan.space.axes.items() if values != first.space.axes[name]
        )

    def _num_ruled_out(self, plan: Plan, knowledge: Knowledge) -> int:
        if self._definition.sampler is SamplerName.AUTO:
            return 0
        unvisited = [config for config in plan.configurations if config not in knowledge.measured]
        return sum(knowledge.rules_out(config) for config in unvisited)


def _runner_up(standing: Standing) -> RunnerUp:
    half_width = _TWO_SIDED_95 * standing.log_ratio_sd
    return RunnerUp(
        config=standing.config,
        ratio=math.exp(standing.log_ratio),
        low=math.exp(standing.log_ratio - half_width),
        high=math.exp(standing.log_ratio + half_width),
    )


def _num_measured(plan: Plan, knowledge: Knowledge) -> int:
    return sum(config in knowledge.measured for config in plan.configurations)


def _unit(record: TrialRecord) -> str:
    return record.unit or "samples"
