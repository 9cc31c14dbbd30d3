"""The adaptive search on a study: with what was measured before, and beyond the first space."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Collection, Sequence, Set

from autotune.analysis.estimates import make_optimizer
from autotune.analysis.result import RunnerUp
from autotune.config import ThroughputConfig
from autotune.intervals import Ratio, RunSpread
from autotune.measurement import Measurement
from autotune.optimizer.adaptive import HORIZON_S, MOST_CHECKS, AdaptiveOptimizer
from autotune.optimizer.standings import Standing, candidates, measured_gains
from autotune.study.definition import MOST_CANDIDATES
from autotune.study.records import Phase, TrialRecord
from autotune.system.machine import this_machine
from autotune.system.memory import memory_left_bytes
from autotune.tuning.confirmation import confirmation_s, confirming_cost
from autotune.tuning.executor import Executor
from autotune.tuning.live import LiveBench
from autotune.tuning.plan import Plan, widen
from autotune.tuning.progress import Progress
from autotune.tuning.search_loop import check_best, search

# Training goes on for at least so many optimizer steps.
_HORIZON_STEPS = 1000
# Of the memory that is left, what a configuration beyond the first space may take.
_MEMORY_SHARE = 0.5
_NUM_RUNNERS_UP = 3
# The baseline and one beside it.
_FEWEST = 2
# For a candidate that was never measured there must be time for so many rounds.
_ROUNDS_OF_UNMEASURED = 2
# Progress takes a moment to reckon, and is shown this often at most.
_SHOWN_EVERY_S = 5.0


class SearchPhase:
    """Searches a plan adaptively, and says how sure that leaves it.

    What an earlier study of the same loop found is where it starts from, and no more.

    Args:
        executor: Runs the trials; what its study holds is taken into account.
        baseline: The baseline's trial.
    """

    def __init__(self, executor: Executor, baseline: TrialRecord) -> None:
        self._executor = executor
        self._baseline = baseline
        self._bench = LiveBench(executor)
        self._earlier = executor.store.earlier_records()
        self._shown_at_s = -math.inf

    def run(self, plan: Plan) -> tuple[Plan, bool]:
        """Measure where that is expected to gain the most; widen axes at whose end the best lies.

        Gives the plan, and whether nothing was left that is worth its time.
        """
        executor = self._executor
        definition = executor.definition
        if self._earlier:
            executor.observer.note("an earlier study of this command serves as a first guess")
        reserved_s = confirmation_s(definition, self._baseline, num_candidates=MOST_CANDIDATES)
        reserved_s += definition.explanation_s
        while True:
            optimizer = self._prepare(plan, plan.baseline)
            left = definition.max_trials
            if left is not None:
                left -= self._bench.num_trials
            complete = search(
                optimizer,
                self._bench,
                self._bench.now_s + executor.left_s,
                reserved_s=reserved_s,
                others=self._bench,
                max_trials=left,
                after_each=functools.partial(self._show, plan, optimizer),
            )
            if not complete and optimizer.num_tried < _FEWEST and left != 0:
                # Without a single candidate there would be nothing to confirm, whatever is kept
                # for that.
                hasty = self._prepare(plan, plan.baseline, keeps_rounds=False)
                end_s = self._bench.now_s + executor.left_s
                complete = search(hasty, self._bench, end_s, max_trials=1)
                optimizer = self._prepare(plan, plan.baseline)
            standings = optimizer.standings()
            best = standings[0].config
            rates = {found.config: found.units_per_s for found in standings}
            wider = widen(plan, definition, best, rates, executor.rules_out)
            if wider is None or not complete or not self._has_memory_for_more(best):
                self._check_best(optimizer)
                return plan, complete
            added = [
                f"{name} {values[-1]}"
                for name, values in wider.space.axes.items()
                if values != plan.space.axes[name]
            ]
            executor.observer.note(
                f"the best so far, {best.summary}, lies at the end of an axis: "
                f"{', '.join(added)} is tried, too"
            )
            plan = wider

    def _check_best(self, optimizer: AdaptiveOptimizer) -> None:
        """Where the time is up, see whether the best is what it is expected to be.

        A short run of what never ran costs far less than the rounds that would show it.
        """
        executor = self._executor
        most = executor.definition.max_trials
        for _ in range(MOST_CHECKS):
            is_over = most is not None and self._bench.num_trials >= most
            end_s = self._bench.now_s + executor.left_s
            if is_over or not check_best(optimizer, self._bench, end_s):
                return

    def candidates(
        self, plan: Plan, excluded: Set[ThroughputConfig]
    ) -> tuple[ThroughputConfig, ...]:
        """The configurations beside those excluded that are to be confirmed, two at most.

        The first is one that was never measured only if there is time for a round of the
        confirmation, and for another one with one that was, should the first fail. There is a
        second only if there is time for a round with both.
        """
        optimizer = self._prepare(plan, plan.baseline)
        definition = self._executor.definition
        rounds_s = confirmation_s(definition, self._baseline, num_candidates=1)
        num_rounds = definition.confirm_rounds * self._executor.left_s / rounds_s
        return optimizer.to_confirm(
            excluded,
            measured_only=num_rounds < _ROUNDS_OF_UNMEASURED,
            left_s=self._executor.left_s,
        )

    def measured_gain(
        self, plan: Plan, excluded: Set[ThroughputConfig]
    ) -> tuple[ThroughputConfig, ...]:
        """The best beside those excluded that was measured as a gain, if there is time for any."""
        optimizer = self._prepare(plan, plan.baseline)
        standings = optimizer.standings(left_s=self._executor.left_s)
        return candidates(measured_gains(standings), excluded)

    def round_s(self, plan: Plan, configs: Sequence[ThroughputConfig]) -> float:
        """What a round of the confirmation takes with some configurations and the baseline."""
        return self._prepare(plan, plan.baseline).round_s(configs)

    def run_spread(self, plan: Plan, runs: Sequence[TrialRecord]) -> RunSpread | None:
        """How much runs differ, by all trials beside the confirming `runs`.

        None where too few trials tell, or the runs are those of several machines: they differ more.
        """
        if len({run.host for run in runs}) > 1:
            return None
        return self._prepare(plan, plan.baseline, without=runs).run_spread()

    def rank(
        self, plan: Plan, chosen: ThroughputConfig, confirmed: Collection[ThroughputConfig]
    ) -> tuple[float, tuple[RunnerUp, ...]]:
        """How probably a configuration is within 2 % of the fastest; and the next best ones.

        Of those that were confirmed beside it, the confirmation tells more than the search.
        """
        standings = self._prepare(plan, chosen).standings()
        [probability] = [found.probability for found in standings if found.config == chosen]
        others = [s for s in standings if s.config not in confirmed and s.was_measured]
        others.sort(key=lambda found: -found.log_ratio)
        return probability, tuple(map(_runner_up, others[:_NUM_RUNNERS_UP]))

    def _prepare(
        self,
        plan: Plan,
        first: ThroughputConfig,
        *,
        without: Sequence[TrialRecord] = (),
        keeps_rounds: bool = True,
    ) -> AdaptiveOptimizer:
        """The optimizer, told all that was measured so far; ratios are to `first`.

        Args:
            plan: What is searched.
            first: What ratios are to.
            without: Trials that it is not told of.
            keeps_rounds: Whether it leaves time to confirm what it finds.
        """
        measurement = self._baseline.measurement
        assert measurement is not None
        definition = self._executor.definition
        records = self._executor.store.trusted_records()
        self._bench.knows(records)
        left_out = {record.number for record in without}
        return make_optimizer(
            (plan.baseline, *plan.configurations),
            first,
            [record for record in records if record.number not in left_out],
            earlier=self._earlier,
            usable_cores=this_machine().usable_cores,
            block_s=definition.block_s,
            horizon_s=self._horizon_s(measurement),
            confirming=confirming_cost(definition, self._baseline) if keeps_rounds else None,
            starts_at_once=self._executor.starts_at_once,
            rules_out=self._executor.rules_out,
            seed=definition.seed,
        )

    def _horizon_s(self, baseline: Measurement) -> float:
        """How long training will go on, as far as that is known."""
        length = self._executor.definition.training
        if length is not None:
            config = self._baseline.config
            num_samples = length.num_samples(config, baseline.steps_per_epoch)
            if num_samples is not None:
                return num_samples / baseline.samples_per_s
        return max(HORIZON_S, _HORIZON_STEPS * baseline.seconds_per_optimizer_step)

    def _has_memory_for_more(self, config: ThroughputConfig) -> bool:
        """Whether twice of what a configuration took of the machine's memory would fit.

        Of a GPU's is known what it takes: see `memory_forecast`.
        """
        held = [
            record.measurement.peak_memory_bytes + record.measurement.shared_memory_bytes
            for record in self._executor.store.records()
            if record.config == config and record.measurement is not None
        ]
        return 2 * max(held, default=0) <= _MEMORY_SHARE * memory_left_bytes()

    def _show(self, plan: Plan, optimizer: AdaptiveOptimizer) -> None:
        if time.monotonic() < self._shown_at_s + _SHOWN_EVERY_S:
            return
        best, *_ = optimizer.standings()
        self._executor.observer.update(
            Progress(
                num_configurations=len(plan.configurations),
                num_measured=optimizer.num_tried,
                num_pruned=0,
                baseline=best.units_per_s / math.exp(best.log_ratio),
                best=best.units_per_s,
                best_error=None,
                best_config=best.config,
                probability=best.probability,
                left_s=max(0.0, self._executor.left_s),
                phase=Phase.SEARCH,
                unit=self._baseline.unit or "samples",
            )
        )
        self._shown_at_s = time.monotonic()


def _runner_up(standing: Standing) -> RunnerUp:
    ratio = Ratio.of_log(standing.log_ratio, standing.log_ratio_sd)
    return RunnerUp(config=standing.config, **dataclasses.asdict(ratio))
