"""One run: baseline, search, confirmation, answer."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Mapping, Sequence, Set
from importlib import metadata
from pathlib import Path

from autotune.analysis.bottleneck import Bottleneck, diagnose
from autotune.analysis.comparison import choose_by_runs, complete_rounds
from autotune.analysis.interference import (
    check_before_start,
    check_confirmed,
    disturbed_by,
    is_disturbed_throughout,
)
from autotune.analysis.noise import BlockSpread
from autotune.analysis.result import (
    Result,
    fork_differences,
    longer_epoch,
    make_best_config,
    stored_result,
    unconfirmed_gain,
)
from autotune.analysis.stragglers import find_straggler
from autotune.analysis.trend import change_within_runs
from autotune.axes import AxisValue
from autotune.best_config import MachineRecord
from autotune.blocks import LoopFacts
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError, CommandError, NothingWorkedError
from autotune.measurement import FailureCause, StartMode, figure
from autotune.space import Space
from autotune.study.definition import SamplerName, StudyDefinition
from autotune.study.records import Phase, TrialRecord
from autotune.study.storage import reading
from autotune.study.store import StudyStore
from autotune.system.machine import this_machine
from autotune.trials.runner import Runner
from autotune.trials.trial import TrialFailedError
from autotune.tuning.ablation_runs import explain
from autotune.tuning.baseline import measure_baseline, remember_later_epochs
from autotune.tuning.confirmation import (
    Confirmation,
    confirmation_s,
    confirmed_together,
)
from autotune.tuning.executor import Executor
from autotune.tuning.fork_check import finds_forks_wrong
from autotune.tuning.in_order import num_measured, num_pruned, search_in_order, show_progress
from autotune.tuning.plan import Plan, estimate, make_plan, with_fitting_axes
from autotune.tuning.progress import Observer
from autotune.tuning.search_phase import SearchPhase

# So many machines search a study at once, and look so often for what these found.
_MOST_MACHINES, _LOOK_EVERY_S = 8, 5.0
# An answer that holds on so many machines is taken to hold on all of their kind.
_ENOUGH_HOSTS = 2
# Of the files that trials created, so many are named.
_MOST_NAMED = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Confirmed:
    """What was searched, whether nothing was left to search, and the confirming runs."""

    plan: Plan
    complete: bool
    runs: Mapping[ThroughputConfig, Sequence[TrialRecord]]


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
        self._started_s = time.monotonic()
        self._executor = Executor(definition, store=store, runner=runner, observer=observer)
        self._confirmation = Confirmation(self._executor)
        self._first_axes: Mapping[str, tuple[AxisValue, ...]] = {}
        self._searches_again = False

    def run(self) -> Result:
        """Measure until the space is settled or the budget is spent, and choose.

        Raises:
            CommandError: The baseline cannot be measured.
            NothingWorkedError: There was time for nothing beside the baseline.
            BadInputError: The study is of another command or machine, or an axis does not fit.
            BusyMachineError: Other processes leave too little of the machine.
        """
        self._wait_for_place()
        remember_later_epochs(self._executor)
        try:
            trial = self._runner.start_default()
        except TrialFailedError as error:
            raise CommandError(error.explain("the command")) from error
        with trial:
            plan = self._plan(trial.facts)
            earlier = stored_result(self._store)
            if earlier is not None and self._is_confirmed_enough():
                self._observer.note("this study is complete: nothing is measured again")
                return earlier
            # The trial stands still: what is seen now are others.
            note = check_before_start(self._executor.keeper, allow_busy=self._definition.allow_busy)
            if note:
                self._observer.note(note)
            for line in (*trial.facts.notes, *plan.notes):
                self._observer.note(line)
            baseline = measure_baseline(self._executor, plan, trial)
        plan = self._fit_axes(plan)
        relative_error = BlockSpread.of([baseline]).relative_error(baseline)
        self._observer.note(
            f"{len(plan.configurations)} configurations; baseline "
            f"{figure(baseline.units_per_s, relative_error)} {baseline.unit or 'samples'}/s with "
            f"{plan.baseline.summary}"
        )
        found = baseline.measurement
        if found is not None and found.uses_device and found.gpu_utilisation is None:
            self._observer.note(
                "the GPU's utilisation and energy, and what others do on it, are not known: that "
                "takes an NVIDIA GPU and `pip install 'autotune[gpu]'`"
            )
        self._executor.learn()
        self._probe_forking(plan, baseline)
        self._tell_estimate(plan, baseline)
        search = SearchPhase(self._executor, baseline)
        confirmed = self._search_and_confirm(plan, baseline, search)
        if self._searches_again:
            again = self._search_and_confirm(confirmed.plan, baseline, search)
            # What was run beside the baseline is worth more than nothing.
            confirmed = again if len(again.runs) > 1 else confirmed
        self._tell_removed_files()
        result = self._answer(confirmed, search)
        if result.complete or not self._store.is_shared or stored_result(self._store) is None:
            # What another machine found to the end is worth more than what there was no time for.
            self._store.set_facts(result=dataclasses.asdict(result))
        return result

    def _wait_for_place(self) -> None:
        """Where enough machines of this kind search already, wait for what they find.

        More of them would not find it sooner (docs/many_machines.md).
        """
        store, told = self._store, False
        while not store.take_seat(_MOST_MACHINES):
            if not told:
                self._observer.note(
                    f"{_MOST_MACHINES} machines of this kind search already: waiting for them"
                )
                told = True
            if stored_result(store) is not None and self._is_confirmed_enough():
                return
            if self._executor.left_s < 0:
                raise NothingWorkedError(
                    "the machines that search have not come to an answer in the time given: give "
                    "more with --budget"
                )
            store.rest()
            time.sleep(_LOOK_EVERY_S)

    def _tell_removed_files(self) -> None:
        names = sorted({Path(path).name for path in self._runner.removed_files})
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            self._observer.note(
                "the steps of trials created files, which were removed: "
                f"{', '.join(names[:_MOST_NAMED])}{more}. Write none where autotune.is_trial()"
            )

    def _search_and_confirm(
        self, plan: Plan, baseline: TrialRecord, search: SearchPhase
    ) -> _Confirmed:
        """Search, look at what each setting does, and run the best again beside the baseline."""
        self._searches_again = False
        if self._definition.sampler is SamplerName.AUTO:
            plan, complete = search.run(plan)
            self._set_space(plan)
        else:
            complete = search_in_order(self._executor, plan, baseline)
        candidates = self._candidates(plan, baseline, search)
        if candidates:
            reserved_s = confirmation_s(self._definition, baseline, num_candidates=len(candidates))
            if self._definition.sampler is SamplerName.AUTO:
                reserved_s = max(reserved_s, search.round_s(plan, candidates))
            explain(
                self._executor,
                plan,
                baseline,
                candidates[0],
                spent_s=time.monotonic() - self._started_s,
                reserved_s=reserved_s,
            )
            # What was seen meanwhile counts, too.
            candidates = self._candidates(plan, baseline, search)
        runs = self._confirm(plan, baseline, candidates, search, complete)
        return _Confirmed(plan=plan, complete=complete, runs=runs)

    def _plan(self, facts: LoopFacts) -> Plan:
        """What is to be searched; a study holds runs of one workload on one machine only.

        What an earlier result depended on is compared, and the result forgotten where it changed.
        """
        introduction = self._runner.introduction
        assert introduction is not None
        plan = make_plan(self._definition, introduction, facts)
        machine = MachineRecord.of(this_machine())
        workload = {
            "command": list(self._definition.command),
            "machine": machine.fingerprint,
            "baseline": plan.baseline.to_dict(),
            "effective_batch_size": introduction.effective_batch_size,
        }
        stored = self._store.facts
        with reading(f"study {self._store.name}"):
            earlier = dict(stored.get("workload", workload))
            # Settings that there were not yet when it was stored are as they are by default.
            earlier["baseline"] = ThroughputConfig(**earlier["baseline"]).to_dict()
            if "script_default" in stored:
                default = ThroughputConfig(**stored["script_default"])
                stored = {**stored, "script_default": default.to_dict()}
        for name, now in workload.items():
            before = earlier.get(name)
            if before != now:
                raise BadInputError(
                    f"study {self._store.name}: its {name} was {before}, and is {now} now: "
                    "start another study with --fresh"
                )
        target = self._runner.patch_target
        versions = {name: metadata.version(name) for name in ("autotune", "optuna")}
        conditions = {
            "versions": {**introduction.versions, **versions},
            "config_path": introduction.config_path,
            "axes": _plain(plan.space),
            "script_default": introduction.default.to_dict(),
            "patch": target and {**dataclasses.asdict(target), "calls": list(target.calls)},
        }
        training = self._definition.training
        # Machines may have the same script in different folders.
        may_differ = {"config_path"} if self._store.is_shared else set()
        if any(
            stored.get(name) != now for name, now in conditions.items() if name not in may_differ
        ):
            self._store.set_facts(result=None)
        self._store.set_facts(
            workload=workload,
            **workload | {"machine": dataclasses.asdict(machine)},
            **conditions,
            training=dataclasses.asdict(training) if training else None,
            gpu_headroom=self._definition.gpu_headroom,
        )
        if stored_result(self._store) is None:
            # What a complete study searched in the end stays: it may be less than this, or more.
            self._set_space(plan)
        return plan

    def _fit_axes(self, plan: Plan) -> Plan:
        """The plan with the axes that matter by what the baseline shows.

        The study's first run of the baseline decides, so that a study that is resumed searches the
        same space.
        """
        first = next(
            record
            for record in self._store.records()
            if record.phase is Phase.BASELINE and record.measurement is not None
        )
        fitting = with_fitting_axes(plan, self._definition, first.samples)
        for line in fitting.notes[len(plan.notes) :]:
            self._observer.note(line)
        plan = fitting
        self._first_axes = plan.space.axes
        self._set_space(plan)
        return plan

    def _set_space(self, plan: Plan) -> None:
        self._store.set_facts(
            searched_axes=_plain(plan.space), num_configurations=len(plan.configurations)
        )

    def _probe_forking(self, plan: Plan, baseline: TrialRecord) -> None:
        """Measure the baseline as trials of the search are; give up forking where it fails."""
        known = self._executor.knowledge(plan).measured.get(plan.baseline)
        failed_before = self._store.facts.get("fork_failure")
        if failed_before and self._runner.mode is StartMode.FORK:
            self._runner.give_up_forking(failed_before)
        elif known is None:
            mode = self._runner.mode
            record = self._executor.run_short(plan.baseline, Phase.PROBE)
            if record.failure is not None and mode is StartMode.FORK:
                self._executor.give_up_forking(f"a forked trial failed: {record.failure.message}")
                record = self._executor.run_short(plan.baseline, Phase.PROBE)
            if record.start_mode is StartMode.FORK and record.start_up_s is not None:
                self._observer.note(
                    f"trials are forked: first batch after {record.start_up_s:.2f} s, where a "
                    f"fresh process takes {baseline.start_up_s:.2f} s"
                )
        self._executor.tell_fresh_reason()

    def _tell_estimate(self, plan: Plan, baseline: TrialRecord) -> None:
        assert baseline.measurement is not None and baseline.start_up_s is not None
        expected = estimate(
            self._definition,
            plan,
            baseline.measurement,
            start_up_s=baseline.start_up_s,
            forks=self._runner.mode is StartMode.FORK,
        )
        self._observer.note(f"expected to take {expected.low_s:.0f} to {expected.high_s:.0f} s")

    def _candidates(
        self,
        plan: Plan,
        baseline: TrialRecord,
        search: SearchPhase,
        without: Set[ThroughputConfig] = frozenset(),
    ) -> tuple[ThroughputConfig, ...]:
        """What is to be confirmed beside the baseline; nothing of what is to be left out."""
        excluded = {plan.baseline, *without}
        if self._definition.sampler is SamplerName.AUTO:
            found = search.candidates(plan, excluded)
        else:
            found = self._confirmation.choose(self._executor.knowledge(plan), excluded, baseline)
        earlier = stored_result(self._store) if self._store.is_shared else None
        if earlier is None or earlier.best.config in {*excluded, *found[:1]}:
            return found
        # What was the answer on another machine is to hold here as well.
        return *found[:1], earlier.best.config

    def _confirm(
        self,
        plan: Plan,
        baseline: TrialRecord,
        candidates: tuple[ThroughputConfig, ...],
        search: SearchPhase,
        complete: bool,
    ) -> dict[ThroughputConfig, list[TrialRecord]]:
        """The confirming runs that can be compared, by configuration, round by round."""
        # The host's memory and threads are no part of a fresh training run.
        self._runner.close()
        knowledge = self._executor.knowledge(plan)
        if not candidates and not complete:
            raise NothingWorkedError(
                "no configuration beside the baseline could be measured in the time and the trials "
                "given: give more with --budget or --max-trials (a run of the baseline alone took "
                f"{baseline.duration_s:.0f} s"
                + (", disturbed by other processes)" if is_disturbed_throughout(baseline) else ")")
            )
        fit_together = functools.partial(self._confirmation.fit_together, plan.baseline)
        if self._definition.sampler is SamplerName.AUTO and (
            self._runner.may_collide or not fit_together(candidates)
        ):
            # The second tells something only where it is measured in turn with the first.
            candidates = candidates[:1]
        side_by_side = False
        if self._runner.may_collide:
            how = "one after another, since jobs of torch.distributed may want the same port"
        elif not fit_together(candidates):
            how = "one after another, since together they may not fit into memory"
        else:
            side_by_side, how = True, "side by side"
        self._observer.note(
            f"confirming {len(candidates)} candidate{'s' if len(candidates) != 1 else ''} and the "
            f"baseline in fresh processes, {how}"
        )
        confirmed = self._confirmation.confirm(
            [plan.baseline, *candidates],
            side_by_side=side_by_side,
            substitutes=lambda failed: self._candidates(plan, baseline, search, failed),
            show=lambda: show_progress(self._executor, plan, baseline, knowledge, Phase.CONFIRM),
            stop=lambda confirmed: self._must_search_again(confirmed, baseline),
            measured_gain=lambda tried: (
                search.measured_gain(plan, {plan.baseline, *tried})
                if self._definition.sampler is SamplerName.AUTO
                else ()
            ),
        )
        runs = complete_rounds(confirmed, plan.baseline)
        if self._store.is_shared and runs:
            # What is true on one machine only is no answer for all of its kind.
            answer = {plan.baseline, choose_by_runs(runs, plan.baseline).best}
            everywhere = confirmed_together(self._store.records(), answer)
            elsewhere = [r for r in everywhere if r.host != self._store.host]
            if elsewhere:
                own = [record for record in confirmed if record.config in answer]
                runs = complete_rounds([*own, *elsewhere], plan.baseline)
            hosts = {record.host for record in elsewhere}
            if hosts:
                self._observer.note(f"confirmed on {', '.join(sorted(map(str, hosts)))} as well")
        if not runs:
            raise NothingWorkedError(
                "the baseline failed in every round of the confirmation: see the causes with "
                "`autotune show`"
            )
        if not self._definition.allow_busy:
            own = [r for found in runs.values() for r in found if r.host == self._store.host]
            check_confirmed(own, self._executor.keeper)
        return runs

    def _is_confirmed_enough(self) -> bool:
        """Whether this machine confirmed the answer, or two others of its kind did."""
        store, result = self._store, stored_result(self._store)
        if not store.is_shared or result is None:
            return True
        answer = {result.best.config, result.best.baseline.config}
        hosts = {record.host for record in confirmed_together(store.records(), answer)}
        return store.host in hosts or len(hosts) >= _ENOUGH_HOSTS

    def _must_search_again(self, runs: Sequence[TrialRecord], baseline: TrialRecord) -> bool:
        self._searches_again = finds_forks_wrong(self._executor, runs, baseline)
        return self._searches_again

    def _answer(self, confirmed: _Confirmed, search: SearchPhase) -> Result:
        """Choose by the confirming runs, and gather what is to be told."""
        plan, runs, complete = confirmed.plan, confirmed.runs, confirmed.complete
        run_spread = search.run_spread(plan, [run for found in runs.values() for run in found])
        choice = choose_by_runs(runs, plan.baseline, run_spread)
        best = make_best_config(
            choice,
            runs,
            baseline=plan.baseline,
            definition=self._definition,
            storage=self._storage,
            store=self._store,
            patch=self._runner.patch_target,
        )
        knowledge = self._executor.knowledge(plan)
        records = self._store.records()
        probability, runners_up = search.rank(plan, best.config, runs)
        num_tried = num_measured(plan, knowledge)
        searched = [r for r in records if r.phase.is_brief]
        spread = BlockSpread.of(records)
        return Result(
            best=best,
            probability=probability,
            runners_up=runners_up,
            widened=self._widened(plan),
            tuning_s=time.monotonic() - self._started_s,
            num_configurations=len(plan.configurations),
            num_measured=num_tried,
            num_pruned=len(plan.configurations) - num_tried
            if complete
            else num_pruned(plan, knowledge),
            num_rounds=len(runs[plan.baseline]),
            num_failed=sum(
                record.failure is not None and record.failure.cause is not FailureCause.INTERRUPTED
                for record in records
            ),
            num_disturbed=sum(r.measurement.num_disturbed for r in records if r.measurement),
            num_disturbed_runs=sum(
                is_disturbed_throughout(run) for found in runs.values() for run in found
            ),
            disturbed_by=disturbed_by(records, self._executor.keeper),
            waited_s=self._executor.keeper.waited_s,
            # Forked trials are short, and vary more than runs do.
            fork_differences=fork_differences(
                choose_by_runs(runs, plan.baseline), records, (plan.baseline, best.config)
            ),
            baseline_bottleneck=self._diagnose(plan.baseline, runs, searched),
            bottleneck=self._diagnose(best.config, runs, searched),
            baseline_straggler=find_straggler(runs[plan.baseline]),
            straggler=find_straggler(runs[best.config]),
            unsteady=statistics.mean(map(spread.is_unsteady, runs[best.config])) > 0.5,
            config_path=self._store.facts["config_path"],
            start_mode=self._runner.mode,
            fresh_reason=self._runner.fresh_reason,
            complete=complete,
            unconfirmed=None
            if len(runs) > 1
            else unconfirmed_gain(self._store.trusted_records(), plan.baseline),
            longer_epoch=longer_epoch(runs[plan.baseline], runs[choice.best])
            if choice.speedup.significant
            else None,
            baseline_change=change_within_runs(runs[plan.baseline]),
            change=change_within_runs(runs[best.config]),
        )

    def _diagnose(
        self,
        config: ThroughputConfig,
        runs: Mapping[ThroughputConfig, Sequence[TrialRecord]],
        searched: Sequence[TrialRecord],
    ) -> Bottleneck | None:
        """The bottleneck, by an earlier round of this machine where a slow loop was timed then."""
        before = [
            record
            for record in self._store.records()
            if record.phase is Phase.CONFIRM
            and record.config == config
            and record.host == self._store.host
        ]
        return diagnose(config, runs[config], searched) or diagnose(config, before, searched)

    def _widened(self, plan: Plan) -> tuple[str, ...]:
        return tuple(
            name for name, values in plan.space.axes.items() if values != self._first_axes[name]
        )


def _plain(space: Space) -> dict[str, list[AxisValue]]:
    return {name: list(values) for name, values in space.axes.items()}
