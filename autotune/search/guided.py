"""The adaptive search on a study: with what was measured before, and beyond the first space."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Set

from threadpoolctl import threadpool_limits

from autotune.config import ThroughputConfig
from autotune.machine import this_machine
from autotune.measurement import Measurement
from autotune.search.adaptive import (
    HORIZON_S,
    MOST_CHECKS,
    AdaptiveSearch,
    Standing,
    finalists,
    measured_gains,
)
from autotune.search.answer import RunnerUp
from autotune.search.finals import confirmation_s
from autotune.search.live import LiveBench, recall
from autotune.search.plan import Plan, widen
from autotune.search.progress import Progress
from autotune.search.recorder import Recorder
from autotune.search.records import Phase, TrialRecord
from autotune.search.study import trusted
from autotune.trials.memory import memory_left_bytes

# Training goes on for at least so many optimizer steps.
_HORIZON_STEPS = 1000
# Of the memory that is left, what a configuration beyond the first space may take.
_MEMORY_SHARE = 0.5
_NUM_RUNNERS_UP = 3
# The baseline and one beside it.
_FEWEST = 2
# For a candidate that was never measured there must be time for so many rounds.
_ROUNDS_OF_UNMEASURED = 2
# The 97.5 % quantile of the normal distribution.
_TWO_SIDED_95 = 1.96
# Progress takes a moment to reckon, and is shown this often at most.
_SHOWN_EVERY_S = 5.0


class GuidedSearch:
    """Searches a plan adaptively, and says how sure that leaves it.

    What an earlier study of the same loop found is where it starts from, and no more.

    Args:
        recorder: Runs the trials; what its study holds is taken into account.
        baseline: The baseline's trial.
    """

    def __init__(self, recorder: Recorder, baseline: TrialRecord) -> None:
        # More threads would be slower for matrices of this size, and spin beside the trials.
        threadpool_limits(limits=1)
        self._recorder = recorder
        self._baseline = baseline
        self._bench = LiveBench(recorder)
        self._earlier = recorder.store.records_of_similar()
        self._shown_at_s = -math.inf

    def search(self, plan: Plan) -> tuple[Plan, bool]:
        """Measure where that is expected to gain the most; widen axes at whose end the best lies.

        Gives the plan, and whether nothing was left that is worth its time.
        """
        recorder = self._recorder
        definition = recorder.definition
        if self._earlier:
            recorder.observer.note("an earlier study of this command serves as a first guess")
        reserved_s = confirmation_s(definition, self._baseline, num_finalists=1)
        reserved_s += definition.explanation_s
        while True:
            search = self._prepare(plan, plan.baseline)
            left = definition.max_trials
            if left is not None:
                left -= self._bench.num_visits
            complete = search.run(
                self._bench.now_s + recorder.left_s - reserved_s,
                max_visits=left,
                after_each=functools.partial(self._show, plan, search),
            )
            if not complete and search.num_visited < _FEWEST and left != 0:
                # Without a single candidate there would be nothing to confirm, whatever is kept
                # for that.
                complete = search.run(self._bench.now_s + recorder.left_s, max_visits=1)
            standings = search.standings()
            best = standings[0].config
            rates = {found.config: found.units_per_s for found in standings}
            wider = widen(plan, definition, best, rates, recorder.rules_out)
            if wider is None or not complete or not self._has_memory_for_more(best):
                self._check_best(search)
                return plan, complete
            added = [
                f"{name} {values[-1]}"
                for name, values in wider.space.axes.items()
                if values != plan.space.axes[name]
            ]
            recorder.observer.note(
                f"the best so far, {best.summary}, lies at the end of an axis: "
                f"{', '.join(added)} is tried, too"
            )
            plan = wider

    def _check_best(self, search: AdaptiveSearch) -> None:
        """Where the time is up, see whether the best is what it is believed to be.

        A short run of what never ran costs far less than the rounds that would show it.
        """
        recorder = self._recorder
        definition = recorder.definition
        round_s = confirmation_s(definition, self._baseline, num_finalists=1)
        round_s /= definition.confirm_rounds
        for _ in range(MOST_CHECKS):
            is_over = definition.max_trials is not None and (
                self._bench.num_visits >= definition.max_trials
            )
            if is_over or not search.check_best(self._bench.now_s + recorder.left_s - round_s):
                return

    def finalists(
        self, plan: Plan, excluded: Set[ThroughputConfig]
    ) -> tuple[ThroughputConfig, ...]:
        """The configuration beside those excluded that is to be confirmed, if there is one.

        What was measured as a gain comes first, however much is expected of others. Without that
        it is the best, be it one that was never measured if there is time for a round of the
        confirmation, and for another one with one that was, should the first fail.
        """
        standings = self._prepare(plan, plan.baseline).standings()
        definition = self._recorder.definition
        rounds_s = confirmation_s(definition, self._baseline, num_finalists=1)
        num_rounds = definition.confirm_rounds * self._recorder.left_s / rounds_s
        return finalists(standings, excluded, measured_only=num_rounds < _ROUNDS_OF_UNMEASURED)

    def measured_gain(
        self, plan: Plan, excluded: Set[ThroughputConfig]
    ) -> tuple[ThroughputConfig, ...]:
        """The best configuration beside those excluded that was measured as a gain, if any was."""
        standings = self._prepare(plan, plan.baseline).standings()
        return finalists(measured_gains(standings), excluded)

    def rank(self, plan: Plan, chosen: ThroughputConfig) -> tuple[float, tuple[RunnerUp, ...]]:
        """How probably a configuration is within 2 % of the fastest; and the next best ones."""
        standings = self._prepare(plan, chosen).standings()
        [probability] = [found.probability for found in standings if found.config == chosen]
        told_already = (chosen, plan.baseline)
        others = [s for s in standings if s.config not in told_already and s.was_measured]
        others.sort(key=lambda found: -found.log_ratio)
        return probability, tuple(map(_runner_up, others[:_NUM_RUNNERS_UP]))

    def _prepare(self, plan: Plan, first: ThroughputConfig) -> AdaptiveSearch:
        """The adaptive search with all that was measured so far; ratios are to `first`."""
        measurement = self._baseline.measurement
        assert measurement is not None
        make = functools.partial(
            AdaptiveSearch,
            (plan.baseline, *plan.configurations),
            first,
            self._bench,
            usable_cores=this_machine().usable_cores,
            block_s=self._recorder.definition.block_s,
            horizon_s=self._horizon_s(measurement),
            rules_out=self._recorder.rules_out,
            seed=self._recorder.definition.seed,
        )
        prior = None
        if self._earlier:
            before = make()
            # What is wrong with forked trials of this study is wrong with those of the other.
            before.learn(recall(trusted(self._earlier, self._recorder.store.facts)))
            prior = before.belief()
        search = make(prior=prior)
        search.learn(recall(self._recorder.store.trusted_records()))
        return search

    def _horizon_s(self, baseline: Measurement) -> float:
        """How long training will go on, as far as that is known."""
        length = self._recorder.definition.training
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
            for record in self._recorder.store.records()
            if record.config == config and record.measurement is not None
        ]
        return 2 * max(held, default=0) <= _MEMORY_SHARE * memory_left_bytes()

    def _show(self, plan: Plan, search: AdaptiveSearch) -> None:
        if time.monotonic() < self._shown_at_s + _SHOWN_EVERY_S:
            return
        best, *_ = search.standings()
        self._recorder.observer.update(
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
                unit=self._baseline.unit or "samples",
            )
        )
        self._shown_at_s = time.monotonic()


def _runner_up(standing: Standing) -> RunnerUp:
    half_width = _TWO_SIDED_95 * standing.log_ratio_sd
    return RunnerUp(
        config=standing.config,
        ratio=math.exp(standing.log_ratio),
        low=math.exp(standing.log_ratio - half_width),
        high=math.exp(standing.log_ratio + half_width),
    )
