"""The search that visits one configuration after another, as a sampler proposes them."""

from __future__ import annotations

from autotune.search.finals import confirmation_s
from autotune.search.knowledge import Knowledge
from autotune.search.plan import Plan
from autotune.search.progress import Progress
from autotune.search.proposals import make_proposer
from autotune.search.recorder import Recorder
from autotune.search.records import Phase, TrialRecord
from autotune.search.spread import BlockSpread


def search_in_order(recorder: Recorder, plan: Plan, baseline: TrialRecord) -> bool:
    """Visit configurations one by one; gives whether none that matters is left.

    Args:
        recorder: Runs the visits.
        plan: What to search.
        baseline: The baseline's trial.
    """
    definition = recorder.definition
    proposer = make_proposer(definition.sampler, plan.space.axes, definition.seed)
    reserved_s = confirmation_s(definition, baseline, num_finalists=definition.num_finalists)
    reserved_s += definition.explanation_s
    num_visits = 0
    while True:
        knowledge = recorder.knowledge(plan)
        candidates = [
            config
            for config in plan.configurations
            if config not in knowledge.measured and not knowledge.rules_out(config)
        ]
        if not candidates and not definition.allow_busy:
            # A second look at what something disturbed from beginning to end.
            candidates = list(knowledge.in_doubt)
        show_visits(recorder, plan, baseline, knowledge, Phase.SEARCH)
        if not candidates:
            return True
        # Without a single candidate there would be nothing to confirm, whatever is kept for that.
        has_one = any(
            rate for config, rate in knowledge.measured.items() if config != plan.baseline
        )
        kept_s = reserved_s if has_one else 0.0
        if num_visits == definition.max_trials or recorder.left_s < kept_s:
            return False
        config = proposer.propose(candidates, knowledge.measured, knowledge.bound)
        recorder.visit(config, Phase.SEARCH, incumbent=knowledge.incumbent)
        num_visits += 1


def show_visits(
    recorder: Recorder,
    plan: Plan,
    baseline: TrialRecord,
    knowledge: Knowledge,
    phase: Phase,
) -> None:
    """Tell the observer what the visits so far have shown."""
    measured = knowledge.measured
    best = max(measured, key=lambda config: measured[config], default=plan.baseline)
    records = recorder.store.records()
    best_runs = [r for r in records if r.config == best and r.units_per_s == measured.get(best)]
    recorder.observer.update(
        Progress(
            num_configurations=len(plan.configurations),
            num_measured=num_measured(plan, knowledge),
            num_ruled_out=num_ruled_out(plan, knowledge),
            baseline=baseline.units_per_s,
            best=measured.get(best, baseline.units_per_s),
            best_error=BlockSpread.of(records).relative_error(best_runs[-1]) if best_runs else None,
            best_config=best,
            probability=None,
            left_s=max(0.0, recorder.left_s),
            phase=phase,
            unit=baseline.unit or "samples",
        )
    )


def num_measured(plan: Plan, knowledge: Knowledge) -> int:
    """How many configurations of a plan were visited."""
    return sum(config in knowledge.measured for config in plan.configurations)


def num_ruled_out(plan: Plan, knowledge: Knowledge) -> int:
    """How many of the others need no visit."""
    unvisited = [config for config in plan.configurations if config not in knowledge.measured]
    return sum(knowledge.rules_out(config) for config in unvisited)
