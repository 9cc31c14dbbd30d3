"""The search that tries one configuration after another, as a sampler proposes them."""

from __future__ import annotations

import contextlib

from autotune.analysis.knowledge import Knowledge
from autotune.analysis.noise import BlockSpread
from autotune.optimizer.baselines import make_proposer
from autotune.study.records import Phase, TrialRecord
from autotune.study.store import TakenError
from autotune.tuning.confirmation import confirmation_s
from autotune.tuning.executor import Executor
from autotune.tuning.plan import Plan
from autotune.tuning.progress import Progress


def search_in_order(executor: Executor, plan: Plan, baseline: TrialRecord) -> bool:
    """Visit configurations one by one; gives whether none that matters is left.

    Args:
        executor: Runs the trials.
        plan: What to search.
        baseline: The baseline's trial.
    """
    definition = executor.definition
    proposer = make_proposer(definition.sampler, plan.space.axes, definition.seed)
    reserved_s = confirmation_s(definition, baseline, num_candidates=definition.num_candidates)
    reserved_s += definition.explanation_s
    num_visits = 0
    while True:
        knowledge = executor.knowledge(plan)
        waiting = [
            config
            for config in plan.configurations
            if config not in knowledge.measured and not knowledge.rules_out(config)
        ]
        pending = executor.store.running_elsewhere()
        waiting = [config for config in waiting if config not in pending]
        if not waiting and not definition.allow_busy:
            # A second look at what something disturbed from beginning to end.
            waiting = [config for config in knowledge.in_doubt if config not in pending]
        show_progress(executor, plan, baseline, knowledge, Phase.SEARCH)
        if not waiting:
            return True
        # Without a single candidate there would be nothing to confirm, whatever is kept for that.
        has_one = any(
            rate for config, rate in knowledge.measured.items() if config != plan.baseline
        )
        kept_s = reserved_s if has_one else 0.0
        if num_visits == definition.max_trials or executor.left_s < kept_s:
            return False
        config = proposer.propose(waiting, knowledge.measured, knowledge.bound)
        with contextlib.suppress(TakenError):
            executor.run_short(config, Phase.SEARCH, incumbent=knowledge.incumbent)
            num_visits += 1


def show_progress(
    executor: Executor,
    plan: Plan,
    baseline: TrialRecord,
    knowledge: Knowledge,
    phase: Phase,
) -> None:
    """Tell the observer what the trials so far have shown."""
    measured = knowledge.measured
    best = max(measured, key=lambda config: measured[config], default=plan.baseline)
    records = executor.store.records()
    best_runs = [r for r in records if r.config == best and r.units_per_s == measured.get(best)]
    executor.observer.update(
        Progress(
            num_configurations=len(plan.configurations),
            num_measured=num_measured(plan, knowledge),
            num_pruned=num_pruned(plan, knowledge),
            baseline=baseline.units_per_s,
            best=measured.get(best, baseline.units_per_s),
            best_error=BlockSpread.of(records).relative_error(best_runs[-1]) if best_runs else None,
            best_config=best,
            probability=None,
            left_s=max(0.0, executor.left_s),
            phase=phase,
            unit=baseline.unit or "samples",
        )
    )


def num_measured(plan: Plan, knowledge: Knowledge) -> int:
    """How many configurations of a plan were tried."""
    return sum(config in knowledge.measured for config in plan.configurations)


def num_pruned(plan: Plan, knowledge: Knowledge) -> int:
    """How many of the others need no trial."""
    unvisited = [config for config in plan.configurations if config not in knowledge.measured]
    return sum(knowledge.rules_out(config) for config in unvisited)
