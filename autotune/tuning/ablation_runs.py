"""Runs what is missing to tell what each setting does."""

from __future__ import annotations

from collections.abc import Iterable

from autotune.analysis.ablation import around, find_changes
from autotune.analysis.estimates import Estimates
from autotune.analysis.short_trials import recall
from autotune.config import ThroughputConfig
from autotune.optimizer.adaptive import Reading
from autotune.optimizer.trial_cost import TrialCost
from autotune.study.definition import EXPLANATION_S
from autotune.study.records import Phase, TrialRecord
from autotune.system.machine import this_machine
from autotune.tuning.executor import Executor
from autotune.tuning.plan import Plan

# Long enough for what differs from process to process to matter more than what does within one.
_NUM_BLOCKS = 4
# It may take that share of what the search took, if that is longer than what is kept for it.
_ALLOWED_SHARE = 0.2


def explain(
    executor: Executor,
    plan: Plan,
    baseline: TrialRecord,
    best: ThroughputConfig,
    *,
    spent_s: float,
    reserved_s: float,
) -> None:
    """Run the configurations that differ from baseline or best in one setting, if they have not.

    Args:
        executor: Runs them.
        plan: What was searched.
        baseline: The baseline's trial.
        best: The best configuration so far.
        spent_s: What the run has taken so far.
        reserved_s: What must be left of the budget.
    """
    records = executor.store.trusted_records()
    configs = around(plan.space, plan.baseline, best)
    estimates = Estimates.of(
        (plan.baseline, *plan.configurations, *configs),
        records,
        usable_cores=this_machine().usable_cores,
        earlier=executor.store.earlier_records(),
    )
    if estimates is None:
        return
    changes = find_changes(plan.space, plan.baseline, best, estimates)
    # What the best has changed comes first, the batch size before all: it changes more than speed.
    changes.sort(key=lambda change: (change.without is None, change.setting != "batch_size"))
    wanted = [config for change in changes for config in (change.without, change.alone)]
    settled = estimates.measured | estimates.failed
    allowed_s = max(EXPLANATION_S, _ALLOWED_SHARE * spent_s)
    end_s = executor.left_s - allowed_s
    block_s = executor.definition.block_s
    cost = _cost(records)
    for config in dict.fromkeys(config for config in wanted if config and config not in settled):
        trial_s = cost.trial_s(executor.limits(config).step_s or 0.0, _NUM_BLOCKS, block_s)
        if executor.rules_out(config):
            # A failure meanwhile may have taught so.
            continue
        if executor.left_s - trial_s >= max(end_s, reserved_s):
            executor.run_short(config, Phase.EXPLAIN, num_blocks=_NUM_BLOCKS)


def _cost(records: Iterable[TrialRecord]) -> TrialCost:
    """What the short trials so far took until their first blocks."""
    found = (trial.outcome for trial in recall(records))
    return TrialCost.learned(
        (reading.start_s, reading.duration_s / reading.num_steps)
        for reading in found
        if isinstance(reading, Reading) and reading.start_s is not None
    )
