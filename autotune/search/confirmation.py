"""The answer: from confirming runs to the chosen configuration, with intervals.

Finalists and baseline are started afresh in rounds, each once per round. What a round does to all
of them alike (drift of the machine) cancels in the comparison.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit

from autotune.config import ThroughputConfig

# Two configurations within this of each other are equally fast; the cheaper one is preferred, and
# a gain below it is none.
INDIFFERENCE = 0.02
_CONFIDENCE = 0.95
# Weak prior on the spread between two runs of one configuration, worth two runs' knowledge: two
# passes over 204 configurations on a 2-core machine differed by 3.6 % in the median, hence a
# standard deviation of 3.6 % / (0.6745 · √2). It keeps two lucky repeats from claiming certainty.
_PRIOR_LOG_SD = 0.038
_PRIOR_FREEDOM = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio of throughputs with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether it is surely a gain, and one worth having."""
        return self.low > 1.0 and self.ratio > 1.0 + INDIFFERENCE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A rate, and the bounds in which one more run falls with 95 % probability."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The outcome of confirmation.

    Attributes:
        best: The fastest candidate, or the cheapest of those equally fast.
        speedup: Its throughput ÷ the baseline's.
        rates: For every configuration, what one more run of it will reach.
    """

    best: ThroughputConfig
    speedup: Ratio
    rates: Mapping[ThroughputConfig, Interval]


def choose(
    rates_per_s: Mapping[ThroughputConfig, Sequence[float]], baseline: ThroughputConfig
) -> Choice:
    """Choose among the confirmed configurations.

    Args:
        rates_per_s: For the baseline and the candidates, if there are any, the throughput in each
            round; the same rounds, in the same order, for all.
        baseline: Which of them is the baseline.
    """
    logs = {config: [math.log(rate) for rate in rates] for config, rates in rates_per_s.items()}
    means = {config: sum(values) / len(values) for config, values in logs.items()}
    candidates = [config for config in logs if config != baseline]
    if not candidates:
        same = Ratio(ratio=1.0, low=1.0, high=1.0)
        return Choice(best=baseline, speedup=same, rates=_predict(logs, means))
    top = max(means[config] for config in candidates)
    equals = [config for config in candidates if means[config] >= top - math.log1p(INDIFFERENCE)]
    best = min(equals, key=cost_key)
    return Choice(
        best=best,
        speedup=_compare(logs, means, best, baseline),
        rates=_predict(logs, means),
    )


def cost_key(config: ThroughputConfig) -> tuple[int, ...]:
    """Orders configurations by what they take of the machine, cheapest first."""
    return (
        config.num_workers,
        config.num_threads or 0,
        config.num_prefetched,
        config.batch_size,
    )


def _compare(
    logs: Mapping[ThroughputConfig, Sequence[float]],
    means: Mapping[ThroughputConfig, float],
    best: ThroughputConfig,
    baseline: ThroughputConfig,
) -> Ratio:
    """Interval from the residuals of the additive model log rate = configuration + round.

    Bonferroni over the candidates, since the best was picked from among them.
    Source: Montgomery, "Design and Analysis of Experiments", randomised complete block design.
    """
    num_rounds, num_configs = len(logs[baseline]), len(logs)
    grand = sum(means.values()) / num_configs
    effects = [
        sum(values[index] for values in logs.values()) / num_configs - grand
        for index in range(num_rounds)
    ]
    residuals = [
        values[index] - means[config] - effects[index]
        for config, values in logs.items()
        for index in range(num_rounds)
    ]
    freedom = (num_configs - 1) * (num_rounds - 1)
    sd, quantile = _spread(residuals, freedom, num_comparisons=num_configs - 1)
    difference = means[best] - means[baseline]
    half_width = quantile * sd * math.sqrt(2 / num_rounds)
    return Ratio(
        ratio=math.exp(difference),
        low=math.exp(difference - half_width),
        high=math.exp(difference + half_width),
    )


def _predict(
    logs: Mapping[ThroughputConfig, Sequence[float]], means: Mapping[ThroughputConfig, float]
) -> dict[ThroughputConfig, Interval]:
    """Prediction intervals, from the spread of repeats pooled over all configurations."""
    residuals = [value - means[config] for config, values in logs.items() for value in values]
    num_rounds = len(next(iter(logs.values())))
    sd, quantile = _spread(residuals, len(logs) * (num_rounds - 1), num_comparisons=1)
    half_width = quantile * sd * math.sqrt(1 + 1 / num_rounds)
    return {
        config: Interval(
            mean=math.exp(mean), low=math.exp(mean - half_width), high=math.exp(mean + half_width)
        )
        for config, mean in means.items()
    }


def _spread(
    residuals: Sequence[float], freedom: int, *, num_comparisons: int
) -> tuple[float, float]:
    """Standard deviation behind the residuals, and Student's quantile for it."""
    total = sum(residual**2 for residual in residuals)
    # A spread that is larger than the prior's was seen, and is not talked down.
    if total < freedom * _PRIOR_LOG_SD**2 or not freedom:
        total += _PRIOR_FREEDOM * _PRIOR_LOG_SD**2
        freedom += _PRIOR_FREEDOM
    tail = (1 - _CONFIDENCE) / 2 / num_comparisons
    return math.sqrt(total / freedom), float(stdtrit(freedom, 1 - tail))
