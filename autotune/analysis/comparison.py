"""The answer: from confirming runs to the chosen configuration, with intervals.

Candidates and baseline are started afresh in rounds, each once per round. What a round does to all
of them alike (drift of the machine) cancels in the comparison.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from scipy.special import fdtr, stdtrit

from autotune.config import ThroughputConfig
from autotune.intervals import INDIFFERENCE, Interval, Ratio, RunSpread
from autotune.measurement import counted_blocks
from autotune.space import preference
from autotune.study.records import TrialRecord, telling_failures

_CONFIDENCE = 0.95
# Of pairs of blocks in a round, fewer tell nothing of their spread.
_FEWEST_PAIRS = 4
# Priors on the spread of runs, on the log scale: standard deviation, and the runs that it is worth.
# They keep two lucky repeats from claiming certainty. Measured in turn, in one round: 10 pairs of
# equal forked trials on a 2-core virtual machine, 3 s each in blocks of 0.25 s, differed by 3 %
# (root mean square), hence 2.1 % for one of a pair.
_PAIRED_LOG_SD, _GUESSED_FREEDOM = 0.021, 2
# Of runs that were measured for less than this, the spread is taken for that of independent blocks;
# what less than one of the usual length does nobody has looked at.
_PAIRED_S, _BLOCK_S = 2.5, 0.25
# At different times, what all runs share: these pairs' own rates varied by 12 % over minutes; a
# quiet machine's do by 2 or 3 %. This is in between.
_DRIFT_LOG_SD = 0.05
# Correlation of what the machine does in two rounds, which begin some 10 s after each other, where
# it forgets within 20 s (`posterior.DRIFT_S`).
_ROUNDS_ALIKE = 0.5
# A mean square that is larger than a prior's says so at this level: the prior does not hold.
_CONTRADICTED = 0.95
# For runs of a loop of which nothing else is known.
_ANY_LOOP = RunSpread(
    own=_PAIRED_LOG_SD,
    own_freedom=_GUESSED_FREEDOM,
    drift=_DRIFT_LOG_SD,
    drift_freedom=_GUESSED_FREEDOM,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The outcome of confirmation.

    Attributes:
        best: The fastest candidate, or the preferred one of those equally fast.
        speedup: Its throughput ÷ the baseline's.
        rates: For every configuration, what one more run of it will reach.
    """

    best: ThroughputConfig
    speedup: Ratio
    rates: Mapping[ThroughputConfig, Interval]


def complete_rounds(
    confirmed: Sequence[TrialRecord], baseline: ThroughputConfig
) -> dict[ThroughputConfig, list[TrialRecord]]:
    """The confirming runs that can be compared, by configuration; empty if there are none.

    A candidate that failed once is out (see `telling_failures`); a round that somebody's signal cut
    short is left out, as is one in which the baseline failed, or before a candidate had its first.
    """
    telling = telling_failures(confirmed)
    failed = {record.config for record in confirmed if record.number in telling} - {baseline}
    # Those of two machines are never compared with each other.
    runs: dict[ThroughputConfig, dict[tuple[str | None, int | None], TrialRecord]] = {}
    for record in confirmed:
        if record.failure is None and record.config not in failed:
            runs.setdefault(record.config, {})[record.host, record.round_number] = record
    if baseline not in runs:
        return {}
    counted = [
        number for number in runs[baseline] if all(number in found for found in runs.values())
    ]
    return {
        config: [found[number] for number in counted] for config, found in runs.items() if counted
    }


def choose_by_runs(
    runs: Mapping[ThroughputConfig, Sequence[TrialRecord]],
    baseline: ThroughputConfig,
    spread: RunSpread | None = None,
) -> Choice:
    """Choose among configurations by their confirming runs.

    However alike a few rounds are, they tell no more than the blocks that they come from: the
    interval of the speed-up is no narrower than the pairs of blocks allow that were measured in
    the same turn. What the machine did at the time cancels in these, too. Where time was left for
    a few blocks only, it is as wide as their briefness makes it.

    Args:
        runs: For the baseline and the candidates, the runs of the same rounds.
        baseline: Which of them is the baseline.
        spread: How much runs of this loop differ; None where no search has told.
    """
    rates = {config: [run.units_per_s for run in found] for config, found in runs.items()}
    half_widths = {
        config: _paired_half_width(found, runs[baseline])
        for config, found in runs.items()
        if config != baseline
    }
    has_pairs = any(half_widths.values())
    measured_s = [
        run.measurement.measured_s for found in runs.values() for run in found if run.measurement
    ]
    briefest_s = max(_BLOCK_S, min(measured_s, default=_PAIRED_S))
    is_brief = not has_pairs and briefest_s < _PAIRED_S
    paired_sd = _PAIRED_LOG_SD * (math.sqrt(_PAIRED_S / briefest_s) if is_brief else 1.0)
    return choose(rates, baseline, half_widths, spread, paired_sd=paired_sd)


def _paired_half_width(found: Sequence[TrialRecord], others: Sequence[TrialRecord]) -> float:
    """Half of the 95 % interval of the mean logarithm of a ratio, by pairs of blocks.

    0 where no round has `_FEWEST_PAIRS`, as where one configuration was measured after the other.
    """
    squares, num_pairs, freedom = 0.0, 0, 0
    for run, other in zip(found, others, strict=True):
        blocks, partners = counted_blocks(run.samples), counted_blocks(other.samples)
        if len(blocks) != len(partners) or len(blocks) < _FEWEST_PAIRS:
            continue
        logs = [
            math.log(block.units_per_s / partner.units_per_s)
            for block, partner in zip(blocks, partners, strict=True)
        ]
        mean = sum(logs) / len(logs)
        squares += sum((value - mean) ** 2 for value in logs)
        num_pairs += len(logs)
        freedom += len(logs) - 1
    return _half_width(squares / freedom / num_pairs, freedom) if freedom else 0.0


def choose(
    rates_per_s: Mapping[ThroughputConfig, Sequence[float]],
    baseline: ThroughputConfig,
    half_widths: Mapping[ThroughputConfig, float] = MappingProxyType({}),
    spread: RunSpread | None = None,
    *,
    paired_sd: float = _PAIRED_LOG_SD,
) -> Choice:
    """Choose among the confirmed configurations.

    Args:
        rates_per_s: For the baseline and the candidates, if there are any, the throughput in each
            round; the same rounds, in the same order, for all.
        baseline: Which of them is the baseline.
        half_widths: For candidates, what half of the 95 % interval of the logarithm of their
            speed-up is at least.
        spread: As in `choose_by_runs`.
        paired_sd: By what share a run is taken to differ from its partners in a round, where few
            rounds tell.
    """
    logs = {config: [math.log(rate) for rate in rates] for config, rates in rates_per_s.items()}
    means = {config: sum(values) / len(values) for config, values in logs.items()}
    candidates = [config for config in logs if config != baseline]
    if not candidates:
        same = Ratio(ratio=1.0, low=1.0, high=1.0)
        return Choice(best=baseline, speedup=same, rates=_predict(logs, means, spread or _ANY_LOOP))
    top = max(means[config] for config in candidates)
    equals = [config for config in candidates if means[config] >= top - math.log1p(INDIFFERENCE)]
    best = min(equals, key=lambda config: preference(config, baseline))
    return Choice(
        best=best,
        speedup=_compare(
            logs,
            means,
            best,
            baseline,
            least=half_widths.get(best, 0.0),
            paired_sd=paired_sd,
        ),
        rates=_predict(logs, means, spread or _ANY_LOOP),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _MeanSquares:
    """Analysis of variance of log rates in rounds: log rate = configuration + round + rest.

    Source: Montgomery, "Design and Analysis of Experiments", randomised complete block design.
    """

    num_configs: int
    num_rounds: int
    of_rounds: float
    of_rest: float

    @classmethod
    def of(cls, logs: Mapping[ThroughputConfig, Sequence[float]]) -> _MeanSquares:
        """The mean squares; 0 where there is nothing to tell them from."""
        table = np.array(list(logs.values()))
        num_configs, num_rounds = table.shape
        effects = table.mean(axis=0) - table.mean()
        rest = table - table.mean(axis=1, keepdims=True) - effects
        freedom = num_rounds - 1
        rest_freedom = (num_configs - 1) * freedom
        return cls(
            num_configs=num_configs,
            num_rounds=num_rounds,
            of_rounds=num_configs * float((effects**2).sum()) / freedom if freedom else 0.0,
            of_rest=float((rest**2).sum()) / rest_freedom if rest_freedom else 0.0,
        )

    @property
    def rest_freedom(self) -> int:
        """Degrees of freedom of the rest."""
        return (self.num_configs - 1) * (self.num_rounds - 1)

    def one_more(self, spread: RunSpread) -> tuple[float, float]:
        """Variance of one more run at another time about the mean of the rounds; its freedom.

        All configurations share a round's drift, and few rounds, close to each other, tell little
        of it, however many configurations there are: hence the prior.
        Source: Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance
        Components".
        """
        own, own_freedom = _pool(
            self.of_rest, self.rest_freedom, prior_sd=spread.own, prior_freedom=spread.own_freedom
        )
        drift, freedom = max(0.0, self.of_rounds - own) / self.num_configs, self.num_rounds - 1
        prior_sd, prior_freedom = spread.drift, spread.drift_freedom
        if freedom and fdtr(freedom, prior_freedom, drift / prior_sd**2) > _CONTRADICTED:
            # The machine is not as it was: what is left is what is known of any.
            prior_sd, prior_freedom = max(prior_sd, _ANY_LOOP.drift), _ANY_LOOP.drift_freedom
        drift, drift_freedom = _pool(drift, freedom, prior_sd=prior_sd, prior_freedom=prior_freedom)
        # Rounds that follow each other share some of what the machine does.
        alike = (1 + (self.num_rounds - 1) * _ROUNDS_ALIKE) / self.num_rounds
        own, drift = own * (1 + 1 / self.num_rounds), drift * (1 + alike)
        total = own + drift
        return total, total**2 / (drift**2 / drift_freedom + own**2 / own_freedom)


def _compare(
    logs: Mapping[ThroughputConfig, Sequence[float]],
    means: Mapping[ThroughputConfig, float],
    best: ThroughputConfig,
    baseline: ThroughputConfig,
    *,
    least: float,
    paired_sd: float,
) -> Ratio:
    """Interval of a ratio; Bonferroni over the candidates, since the best was picked from them.

    Half of it is no narrower than `least`, on the scale of logarithms.
    """
    squares = _MeanSquares.of(logs)
    variance, freedom = squares.of_rest, float(squares.rest_freedom)
    if freedom and variance >= paired_sd**2:
        # A spread that is larger than a guess was seen, and is not talked down by it; but Student's
        # t for a single degree of freedom, 12.7, would leave a gain of a half in doubt.
        freedom = max(freedom, _GUESSED_FREEDOM)
    else:
        variance, freedom = _pool(
            variance, freedom, prior_sd=paired_sd, prior_freedom=_GUESSED_FREEDOM
        )
    half_width = _half_width(
        variance * 2 / squares.num_rounds, freedom, num_comparisons=squares.num_configs - 1
    )
    half_width = max(half_width, least)
    difference = means[best] - means[baseline]
    return Ratio(
        ratio=math.exp(difference),
        low=math.exp(difference - half_width),
        high=math.exp(difference + half_width),
    )


def _predict(
    logs: Mapping[ThroughputConfig, Sequence[float]],
    means: Mapping[ThroughputConfig, float],
    spread: RunSpread,
) -> dict[ThroughputConfig, Interval]:
    """Bounds of one more run at another time, from the spread of repeats of all configurations."""
    squares = _MeanSquares.of(logs)
    variance, freedom = squares.one_more(spread)
    half_width = _half_width(variance, freedom)
    return {
        config: Interval(
            mean=math.exp(mean), low=math.exp(mean - half_width), high=math.exp(mean + half_width)
        )
        for config, mean in means.items()
    }


def _pool(
    variance: float, freedom: float, *, prior_sd: float, prior_freedom: float
) -> tuple[float, float]:
    """A variance and its degrees of freedom, moderated by a prior.

    Source: Smyth 2004, "Linear Models and Empirical Bayes Methods".
    """
    total = freedom + prior_freedom
    return (freedom * variance + prior_freedom * prior_sd**2) / total, total


def _half_width(variance: float, freedom: float, *, num_comparisons: int = 1) -> float:
    """Half the 95 % interval of a normal variable whose variance was estimated."""
    tail = (1 - _CONFIDENCE) / 2 / num_comparisons
    return float(stdtrit(freedom, 1 - tail)) * math.sqrt(variance)
