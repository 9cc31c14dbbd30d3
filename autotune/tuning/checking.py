"""Whether settings that were found once still hold: they are run beside what else is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from autotune.analysis.alternatives import Explored, best_within
from autotune.analysis.staleness import Verdict, judge
from autotune.best_config import BestConfig
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError, NothingWorkedError
from autotune.intervals import INDIFFERENCE
from autotune.requirements import Objective, Requirements
from autotune.system.machine import this_machine
from autotune.tuning.executor import Executor
from autotune.tuning.paired import compare
from autotune.tuning.plan import Plan


def check_settings(executor: Executor, best: BestConfig, explored: Explored | None) -> Verdict:
    """Run a file's settings beside the script's own, and beside what its study thinks best.

    Args:
        executor: Runs them.
        best: What the file holds.
        explored: What its study tells; None where there is none any more.

    Raises:
        CommandError: The baseline cannot be measured.
        NothingWorkedError: There was no time for a whole round.
    """
    own = best.baseline.config
    rival = None if explored is None else _rival(explored, best)
    wanted = [best.config] if rival is None else [best.config, rival]

    def candidates(plan: Plan) -> Sequence[ThroughputConfig]:
        configs = [_in_this_training(config, own, plan) for config in wanted]
        return [config for config in configs if config != plan.baseline]

    found = compare(executor, candidates, () if explored is None else explored.records)
    config, *others = (_in_this_training(one, own, found.plan) for one in wanted)
    if config not in found.runs and config not in found.failures:
        raise NothingWorkedError(
            "there was no time for a whole round of the comparison: give more with --budget"
        )
    differences = best.differences(this_machine(), found.versions, found.workload)
    if own.ranks_per_node != found.baseline.ranks_per_node:
        tuned, here = own.ranks_per_node, found.baseline.ranks_per_node
        differences = (*differences, f"ranks per machine: {tuned}, here {here}")
    if _in_this_training(own, own, found.plan) != found.baseline:
        before, now = own.summary, found.baseline.summary
        differences = (*differences, f"the script's own settings: {before}, here {now}")
    return judge(
        best,
        config,
        baseline=found.baseline,
        rival=others[0] if others else None,
        runs=found.runs,
        failures=found.failures,
        differences=differences,
    )


def _rival(explored: Explored, best: BestConfig) -> ThroughputConfig | None:
    """What the study thinks best for what the file was asked for, where speed is what was asked.

    Of what it has measured: what it takes of the memory is known, so that it can run beside the
    file's settings.
    """
    requirements = best.requirements or Requirements()
    if requirements.objective is not Objective.THROUGHPUT:
        return None
    measured = tuple(c for c in explored.configs if c in explored.estimates.measured)
    explored = dataclasses.replace(explored, configs=measured)
    try:
        found = best_within(explored, requirements)
    except BadInputError:
        # The study was searched again since, in another space.
        return None
    return best.config if _are_equal(explored, best.config, found) else found


def _in_this_training(
    config: ThroughputConfig, own: ThroughputConfig, plan: Plan
) -> ThroughputConfig:
    """The same settings for as many ranks and the effective batch that the training has.

    Args:
        config: The settings.
        own: The script's own beside which they were found: where the number of ranks was not tuned,
            it is that of the training.
        plan: Of the training.
    """
    before = plan.baseline
    per_node = config.ranks_per_node
    if per_node == own.ranks_per_node:
        per_node = before.ranks_per_node
    num_ranks = before.num_ranks * per_node // before.ranks_per_node
    config = dataclasses.replace(config, num_ranks=max(1, num_ranks), ranks_per_node=per_node)
    effective = plan.space.effective_batch_size
    return config if effective is None else config.with_effective_batch_size(effective)


def _are_equal(explored: Explored, config: ThroughputConfig, other: ThroughputConfig) -> bool:
    """Whether the study takes two configurations for equally fast."""
    estimates = explored.estimates
    return config in estimates.configs and estimates.ratio(config, other).ratio >= 1 / (
        1 + INDIFFERENCE / 2
    )
