"""Other settings than the fastest: the best that keep to some limits, run beside the baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from autotune.analysis.alternatives import Explored, best_within, cost_per_sample, fits
from autotune.analysis.comparison import choose, choose_by_runs
from autotune.analysis.result import longer_epoch, make_best_config
from autotune.best_config import BestConfig
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError, CommandError, NothingWorkedError
from autotune.intervals import Ratio
from autotune.requirements import Objective, Requirements
from autotune.study.records import TrialRecord
from autotune.tuning.executor import Executor
from autotune.tuning.paired import compare
from autotune.tuning.plan import Plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The settings that were asked for.

    Attributes:
        best: What is written.
        sentences: What they bring.
    """

    best: BestConfig
    sentences: tuple[str, ...]


def apply_requirements(
    executor: Executor, explored: Explored, requirements: Requirements, *, storage: str
) -> Applied:
    """Choose the best of a study that keeps to some requirements, and run it beside the baseline.

    Where the baseline keeps to them as well, and nothing is surely gained, it is the answer.

    Args:
        executor: Runs it, and keeps the trials in the study.
        explored: What the study tells.
        requirements: What is asked for.
        storage: Where the study is, as it may be shown.

    Raises:
        BadInputError: Nothing keeps to them, or the script has other settings than in the study.
        CommandError: What was chosen, or the baseline, cannot be run.
        NothingWorkedError: There was no time for a whole round.
    """
    wanted = best_within(explored, requirements)

    def candidates(plan: Plan) -> Sequence[ThroughputConfig]:
        if plan.baseline != explored.baseline:
            raise BadInputError(
                f"the script's own settings were {explored.baseline.summary} when the study was "
                f"made, and are {plan.baseline.summary} now: run `autotune run` again"
            )
        return (wanted,) if wanted != plan.baseline else ()

    executor.observer.note(f"the best with {requirements}: {wanted.summary}")
    found = compare(executor, candidates)
    if wanted in found.failures:
        failure = found.failures[wanted]
        raise CommandError(
            f"{wanted.summary} fails in a fresh process: {failure.cause}: {failure.message}"
        )
    if wanted not in found.runs:
        raise NothingWorkedError(
            "there was no time for a whole round of the comparison: give more with --budget"
        )
    choice = choose_by_runs(found.runs, found.baseline, explored.estimates.run_spread)
    objective = requirements.objective
    saving = _saving(objective, found.runs, found.baseline, wanted)
    if saving is None:
        gains = choice.speedup.significant and (
            longer_epoch(found.runs[found.baseline], found.runs[wanted]) is None
        )
    else:
        gains = saving.high < 1.0
    limit = requirements.max_memory_bytes
    may_stay = requirements.allow(found.baseline) and (
        limit is None or fits(found.baseline, explored.records, limit)
    )
    chosen = found.baseline if may_stay and not gains else wanted
    best = make_best_config(
        choice,
        found.runs,
        baseline=found.baseline,
        definition=executor.definition,
        storage=storage,
        store=executor.store,
        patch=executor.runner.patch_target,
        versions=found.versions,
        chosen=chosen,
        requirements=requirements,
    )
    taken = best.expected.peak_memory_bytes + best.expected.shared_memory_bytes
    if limit is not None and taken > limit:
        raise CommandError(
            f"{wanted.summary} took {taken / 2**20:,.0f} MiB in a fresh process, more than was "
            "asked: nothing is written, and the same command takes the next best now"
        )
    sentences = [_sentence(chosen, wanted, choice.speedup, num_rounds=len(found.runs[wanted]))]
    if saving is not None:
        sentences.append(
            f"{objective.label}: {saving.ratio:.2f} times that of the script's own settings "
            f"({saving.low:.2f} to {saving.high:.2f})"
        )
    return Applied(best=best, sentences=tuple(sentences))


def _saving(
    objective: Objective,
    runs: Mapping[ThroughputConfig, Sequence[TrialRecord]],
    baseline: ThroughputConfig,
    wanted: ThroughputConfig,
) -> Ratio | None:
    """What a sample costs ÷ what it costs with the baseline; None where that is not asked."""
    if objective is Objective.THROUGHPUT or wanted == baseline:
        return None
    costs = {
        config: [
            cost_per_sample(objective, record.measurement)
            for record in found
            if record.measurement is not None
        ]
        for config, found in runs.items()
    }
    if not all(cost for found in costs.values() for cost in found):
        raise CommandError(f"the runs did not tell the {objective.label}: run the command again")
    more = choose(
        {config: [1 / cost for cost in found if cost] for config, found in costs.items()}, baseline
    ).speedup
    return Ratio(ratio=1 / more.ratio, low=1 / more.high, high=1 / more.low)


def _sentence(
    chosen: ThroughputConfig, wanted: ThroughputConfig, speedup: Ratio, *, num_rounds: int
) -> str:
    if chosen == wanted and speedup.low == speedup.high:
        return f"these are the script's own settings: {chosen.summary}"
    rounds = f"{num_rounds} round{'s' if num_rounds > 1 else ''}"
    reached = (
        f"{speedup.ratio:.2f} times the throughput of the script's own settings "
        f"({speedup.low:.2f} to {speedup.high:.2f}, {rounds})"
    )
    if chosen == wanted:
        return f"{chosen.summary}: {reached}"
    return (
        f"{wanted.summary} reached {reached}, too little to be sure of a gain: the "
        f"script's own settings, {chosen.summary}, are kept"
    )
