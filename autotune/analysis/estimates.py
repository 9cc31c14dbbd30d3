"""What a study's trials tell of the throughput of every configuration, measured or not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from autotune.analysis.lessons import learn
from autotune.analysis.short_trials import recall
from autotune.config import ThroughputConfig
from autotune.intervals import Ratio, RunSpread
from autotune.optimizer.adaptive import AdaptiveOptimizer
from autotune.optimizer.posterior import Posterior
from autotune.study.records import TrialRecord, telling_failures


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Expected throughput of configurations, with how sure that is.

    Attributes:
        posterior: What is expected of `configs`.
        configs: In the posterior's order.
        measured: Those of which a run showed something.
        failed: Those of which every run failed, and not by chance (see `telling_failures`), and
            those that are ruled out by what failures of others teach.
        run_spread: How much runs of one configuration differ; None where too few trials tell.
    """

    posterior: Posterior
    configs: tuple[ThroughputConfig, ...]
    measured: frozenset[ThroughputConfig]
    failed: frozenset[ThroughputConfig]
    run_spread: RunSpread | None = None

    @classmethod
    def of(
        cls,
        configs: Sequence[ThroughputConfig],
        records: Sequence[TrialRecord],
        *,
        usable_cores: float,
        earlier: Sequence[TrialRecord] = (),
    ) -> Estimates | None:
        """What the trials of a study tell; None where none of these configurations ran.

        Args:
            configs: The configurations to estimate, the baseline first.
            records: The study's trials.
            usable_cores: Cores that the loop may use.
            earlier: The trials of an earlier study of the same loop, if there was one.
        """
        optimizer = make_optimizer(
            configs, configs[0], records, earlier=earlier, usable_cores=usable_cores, block_s=1.0
        )
        posterior = optimizer.posterior()
        if posterior is None:
            return None
        measured = {record.config for record in records if record.measurement}
        telling = telling_failures(records)
        failed = {record.config for record in records if record.number in telling} - measured
        lessons = learn(records)
        failed |= {c for c in optimizer.configs if any(lesson.covers(c) for lesson in lessons)}
        return cls(
            posterior=posterior,
            configs=optimizer.configs,
            measured=frozenset(measured),
            failed=frozenset(failed),
            run_spread=optimizer.run_spread(),
        )

    def units_per_s(self, config: ThroughputConfig) -> float:
        """Expected throughput of one of the configurations."""
        return math.exp(self.posterior.mean[self.configs.index(config)])

    def measured_ratio(
        self, config: ThroughputConfig | None, other: ThroughputConfig | None
    ) -> Ratio | None:
        """Throughput of a configuration ÷ that of another, with its 95 % interval.

        None where there is none, or nothing of it was measured: what is reckoned from other
        configurations is good enough to search by, and not to be told as a fact.
        """
        if config is None or other is None or not {config, other} <= self.measured:
            return None
        if not {config, other}.issubset(self.configs):
            # It was run, and is no part of what was searched.
            return None
        return self.ratio(config, other)

    def ratio(self, config: ThroughputConfig, other: ThroughputConfig) -> Ratio:
        """The same of any two, be it reckoned from others."""
        one, two = self.configs.index(config), self.configs.index(other)
        covariance = self.posterior.covariance
        difference = float(self.posterior.mean[one] - self.posterior.mean[two])
        variance = float(covariance[one, one] + covariance[two, two] - 2 * covariance[one, two])
        return Ratio.of_log(difference, math.sqrt(max(0.0, variance)))


def make_optimizer(
    configs: Sequence[ThroughputConfig],
    first: ThroughputConfig,
    records: Sequence[TrialRecord],
    *,
    earlier: Sequence[TrialRecord],
    **options: Any,  # noqa: ANN401
) -> AdaptiveOptimizer:
    """An optimizer that knows a study's trials, and starts from what an earlier one found.

    Args:
        configs: The space.
        first: What ratios are to.
        records: The study's trials.
        earlier: Those of the earlier study; empty where there was none.
        options: See `AdaptiveOptimizer`.
    """
    if earlier:
        before = AdaptiveOptimizer(configs, first, **options)
        before.learn(recall(earlier))
        options["prior"] = before.posterior()
        options["hyperparameters"] = before.hyperparameters
    optimizer = AdaptiveOptimizer(configs, first, **options)
    optimizer.learn(recall(records))
    return optimizer
