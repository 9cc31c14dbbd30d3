"""The adaptive search: measures where it expects to gain the most, and stops when that is little.

It does not know whether its runs are real: a `Bench` makes them, a live one or one that replays a
recorded table.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autotune.config import ThroughputConfig
from autotune.measurement import Failure
from autotune.search.belief import Belief, Observation, Similarity, Spreads, fit_spreads
from autotune.search.confirmation import INDIFFERENCE, preference
from autotune.search.knowledge import needs_as_much
from autotune.search.law import BottleneckLaw, Costs
from autotune.search.policy import Proposal, probabilities_near_best, propose

# A second of tuning must bring more than it costs in training that goes on for so long.
HORIZON_S = 3 * 3600.0
# The search ends sooner where it is so sure that the choice is within 2 % of the fastest.
_SURE = 0.9
# Configurations whose means are so close are taken for equal (see `confirmation.preference`): half
# of what is no matter, since means are uncertain.
_TIE = INDIFFERENCE / 2
# How far an earlier search of the same loop may be off, beyond its own doubts.
_AFTER_ANOTHER = Spreads(step=0.05, batch=0.03, collector=0.05, workers=0.07)
# Spreads are fitted anew whenever there are so many times as many observations, and when one lies
# so many standard deviations from what was expected.
_REFIT = 1.5
_FIRST_FIT = 8
_SURPRISE = 4.0
# What starting a forked trial takes, and settling: first guesses, in seconds and in steps.
_START_S, _SETTLE_STEPS = 0.4, 3.0


# So many configurations that never ran are looked at before one is confirmed.
MOST_CHECKS = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a run showed.

    Attributes:
        at_s: When, in seconds since some start.
        duration_s: Seconds of steps.
        num_units: Units in them that the loader can sustain.
        num_steps: Micro-steps in them.
        wait_s: The part of the time that the loop waited for data.
        lost_s: The part of the time that loading cost: as `wait_s`, but of a GPU's time where
            there is one.
        wait_cpu_s: CPU seconds of the training process while it waited for data.
        start_s: What came before, its start and settling; None where runs of the search start
            otherwise.
        started_at_once: Whether it went on in the process of another run.
        error: Standard deviation of the logarithm of `num_units`, as far as it was reckoned from
            what the loader held ready.
    """

    at_s: float
    duration_s: float
    num_units: float
    num_steps: int
    wait_s: float
    lost_s: float
    wait_cpu_s: float
    start_s: float | None = None
    started_at_once: bool = False
    error: float = 0.0


class Bench(Protocol):
    """Where runs are made."""

    @property
    def now_s(self) -> float:
        """Seconds since some start."""

    def starts_at_once(self, config: ThroughputConfig) -> bool:
        """Whether a run would go on in the process of the last one, at little cost."""

    def visit(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """Start a run of a configuration, settled, time so many blocks of it, and end it."""


class Elsewhere:
    """A bench on which nothing is measured: for a search that is only asked what it thinks."""

    @property
    def now_s(self) -> float:
        """Unix time."""
        return time.time()

    def starts_at_once(self, config: ThroughputConfig) -> bool:
        """Not here."""
        return False

    def visit(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """Not here."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is believed of one configuration.

    Attributes:
        config: The configuration.
        probability: That it is within 2 % of the fastest of the space.
        units_per_s: Its expected throughput.
        log_ratio: Expected logarithm of its rate ÷ that of the first of the space.
        log_ratio_sd: Standard deviation of that.
        was_measured: Whether a run of it showed anything.
    """

    config: ThroughputConfig
    probability: float
    units_per_s: float
    log_ratio: float
    log_ratio_sd: float
    was_measured: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A run that has ended: of which configuration, and what it showed or why it failed."""

    config: ThroughputConfig
    outcome: Reading | Failure


def finalists(
    standings: Sequence[Standing],
    excluded: Set[ThroughputConfig],
    *,
    measured_only: bool = False,
) -> tuple[ThroughputConfig, ...]:
    """What is to be confirmed: the first that is not excluded, if there is one.

    What was measured as a gain comes before all that was not, however much is expected of that.
    Without such a one it may have been measured never: the confirmation does that.
    """
    others = [standing for standing in standings if standing.config not in excluded]
    found = measured_gains(others) or [
        standing for standing in others if standing.was_measured or not measured_only
    ]
    return tuple(standing.config for standing in found[:1])


def measured_gains(standings: Iterable[Standing]) -> list[Standing]:
    """Those of some configurations that ran and are believed to be a gain worth having."""
    least = math.log1p(INDIFFERENCE)
    return [found for found in standings if found.was_measured and found.log_ratio > least]


class AdaptiveSearch:
    """Searches one space.

    Args:
        configs: The space.
        baseline: Where the search starts; it is taken into the space.
        bench: Measures.
        usable_cores: Cores that the loop may use.
        block_s: Shortest duration of a block.
        horizon_s: How long training will go on.
        prior: What an earlier search of the same loop believed of all configurations (see
            `belief`), in place of the law; None where there was none.
        rules_out: Whether a configuration that never ran is not to be tried, by what failures of
            others teach (see `lessons`).
        seed: For the probabilities, which are reckoned by drawing.
    """

    def __init__(
        self,
        configs: Sequence[ThroughputConfig],
        baseline: ThroughputConfig,
        bench: Bench,
        *,
        usable_cores: float,
        block_s: float,
        horizon_s: float = HORIZON_S,
        prior: Belief | None = None,
        rules_out: Callable[[ThroughputConfig], bool] = lambda _: False,
        seed: int = 0,
    ) -> None:
        self.configs = tuple(dict.fromkeys((baseline, *configs)))
        self._prior = prior
        self._places = {config: place for place, config in enumerate(self.configs)}
        self._bench = bench
        self._cores = usable_cores
        self._block_s = block_s
        self._horizon_s = horizon_s
        self._rules_out = rules_out
        self._seed = seed
        self._similarity = Similarity.of(self.configs)
        self._first_spreads = Spreads()
        if prior is not None:
            self._first_spreads = _AFTER_ANOTHER
            self._similarity = dataclasses.replace(self._similarity, doubt=prior.covariance)
        self._spreads = self._first_spreads
        self._num_fitted = 0
        # Places of configurations, with what their runs showed.
        self._readings: list[tuple[int, Reading]] = []
        self._failed: dict[int, Failure] = {}

    def learn(self, visits: Iterable[Visit]) -> None:
        """Take runs into account that are not this search's own; those of other spaces are not.

        What ran once can run, even if it failed at another time.
        """
        for visit in visits:
            index = self._places.get(visit.config)
            if index is not None:
                self._take(index, visit.outcome)
        for index in self._measured:
            self._failed.pop(index, None)

    def run(
        self,
        end_s: float,
        *,
        max_visits: int | None = None,
        after_each: Callable[[], None] = lambda: None,
    ) -> bool:
        """Measure until the choice is sure, or nothing is worth its time, or `end_s` is reached.

        Args:
            end_s: When no measurement may go on any more, on the bench's clock.
            max_visits: Most runs beside the baseline's first; None for no limit.
            after_each: Called after each run.

        Returns:
            Whether it ended by itself.
        """
        if 0 not in self._measured:
            self._visit(0, 1)
        num_visits = 0
        while self._readings:
            belief = self._belief()
            left_s = end_s - self._bench.now_s
            proposal = self._propose(belief, left_s)
            if proposal is None:
                return False
            index, num_blocks = proposal.index, proposal.num_blocks
            best = self._rank(belief)[0]
            if best.probability >= _SURE or proposal.gain_per_s * self._horizon_s < 1.0:
                if best.was_measured:
                    return True
                # What was never measured is no answer, however good it is believed to be.
                index, num_blocks = self._places[best.config], 1
                start_s, block_s = self._costs_s(belief)
                if start_s[index] + block_s[index] > left_s:
                    return False
            if num_visits == max_visits:
                return False
            self._visit(index, num_blocks)
            num_visits += 1
            after_each()
        return False

    def check_best(self, end_s: float) -> bool:
        """Run the best configuration where it never ran, if that fits; says whether it did.

        Args:
            end_s: When it must have ended, on the bench's clock.
        """
        belief = self._belief()
        best = self._rank(belief)[0]
        place = self._places[best.config]
        start_s, block_s = self._costs_s(belief)
        if best.was_measured or self._bench.now_s + start_s[place] + block_s[place] > end_s:
            return False
        self._visit(place, 1)
        return True

    @property
    def num_visited(self) -> int:
        """Configurations that were tried."""
        return len(self._measured | set(self._failed))

    def suggest(self) -> ThroughputConfig:
        """The configuration of which a run is worth most; where none ran, the first that may."""
        proposal = self._propose(self._belief(), math.inf) if self._readings else None
        return self.configs[proposal.index if proposal else int(np.argmax(self._may_run()))]

    def belief(self) -> Belief | None:
        """What is believed of all configurations, the baseline first; None where nothing ran."""
        return self._belief() if self._readings else None

    def standings(self) -> list[Standing]:
        """Configurations, the one to choose first; those that cannot run are left out.

        It is the fastest, or the preferred one of those that are equally fast.
        """
        return self._rank(self._belief())

    def _rank(self, belief: Belief) -> list[Standing]:
        measured = self._measured
        may_run = self._may_run()
        if not may_run.any():
            # Nothing runs any more; what did is the answer.
            may_run[list(measured)] = True
        near = probabilities_near_best(belief, may_run, within=INDIFFERENCE, seed=self._seed)
        covariance = belief.covariance
        ratio_variance = belief.variance + covariance[0, 0] - 2 * covariance[0]
        order = sorted(np.flatnonzero(may_run).tolist(), key=lambda place: -belief.mean[place])
        top = belief.mean[order[0]]
        equals = [place for place in order if belief.mean[place] >= top - _TIE]
        chosen = min(equals, key=lambda place: preference(self.configs[place], self.configs[0]))
        chosen = self._with_first_collector(chosen, belief, may_run)
        order.remove(chosen)
        return [
            Standing(
                config=self.configs[place],
                probability=float(near[place]),
                units_per_s=math.exp(belief.mean[place]),
                log_ratio=float(belief.mean[place] - belief.mean[0]),
                log_ratio_sd=math.sqrt(max(0.0, float(ratio_variance[place]))),
                was_measured=place in measured,
            )
            for place in (chosen, *order)
        ]

    def _with_first_collector(self, place: int, belief: Belief, may_run: NDArray[np.bool_]) -> int:
        """The same settings with the first configuration's garbage collector, if that is no loss.

        It is none where another collector is expected to gain less than what is no matter, or less
        than a standard deviation of that.
        """
        config = dataclasses.replace(self.configs[place], gc=self.configs[0].gc)
        twin = self._places.get(config, place)
        covariance = belief.covariance
        variance = covariance[place, place] + covariance[twin, twin] - 2 * covariance[place, twin]
        gain = belief.mean[place] - belief.mean[twin]
        least = max(INDIFFERENCE, math.sqrt(max(0.0, float(variance))))
        return twin if may_run[twin] and gain < least else place

    def _costs_s(self, belief: Belief) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What starting a run of each configuration takes, and a block, [N] each."""
        step_s = np.exp(-belief.mean) * self._units_per_step()
        return self._start_s(step_s), np.maximum(self._block_s, step_s)

    def _propose(self, belief: Belief, left_s: float) -> Proposal | None:
        start_s, block_s = self._costs_s(belief)
        may_run = self._may_run()
        return propose(
            belief,
            may_run,
            start_s=start_s,
            block_s=block_s,
            now_s=self._bench.now_s,
            left_s=left_s,
            tie=_TIE,
        )

    def _visit(self, index: int, num_blocks: int) -> None:
        self._take(index, self._bench.visit(self.configs[index], num_blocks))

    def _take(self, index: int, outcome: Reading | Failure) -> None:
        if isinstance(outcome, Failure):
            self._failed[index] = outcome
        else:
            self._readings.append((index, outcome))

    @property
    def _measured(self) -> set[int]:
        return {index for index, _ in self._readings}

    def _may_run(self) -> NDArray[np.bool_]:
        """Which configurations have not failed, and need not fail by what failed so far, [N]."""
        exhausted = [
            (self.configs[index], failure.cause)
            for index, failure in self._failed.items()
            if failure.cause.is_exhaustion
        ]
        measured = self._measured
        return np.array(
            [
                index not in self._failed
                and (
                    index in measured
                    or not (
                        self._rules_out(config)
                        or any(needs_as_much(config, *other) for other in exhausted)
                    )
                )
                for index, config in enumerate(self.configs)
            ]
        )

    def _belief(self) -> Belief:
        observations = [
            Observation(
                index=index,
                at_s=reading.at_s,
                log_rate=math.log(reading.num_units / reading.duration_s),
                duration_s=reading.duration_s,
                error=reading.error,
            )
            for index, reading in self._readings
        ]
        law = self._law()
        similarity = self._similarity
        guess = np.zeros(len(self.configs)) if self._prior is None else self._prior.mean
        if law is not None:
            similarity = dataclasses.replace(similarity, gain=law.gain(self.configs))
            if self._prior is None:
                guess = -np.log(law.seconds_per_unit(self.configs))
        belief = Belief(similarity, self._spreads, guess, observations)
        is_due = len(observations) >= max(_FIRST_FIT, _REFIT * self._num_fitted)
        is_surprised = belief.surprise > _SURPRISE and len(observations) > self._num_fitted
        if is_due or is_surprised:
            self._spreads = fit_spreads(similarity, guess, observations, self._first_spreads)
            self._num_fitted = len(observations)
            belief = Belief(similarity, self._spreads, guess, observations)
        return belief

    def _law(self) -> BottleneckLaw | None:
        """What the runs without workers tell of all others; None where there are none."""
        costs = [
            Costs(
                config=self.configs[index],
                step_s=max(1e-12, (reading.duration_s - reading.lost_s) / reading.num_units),
                load_s=reading.wait_s / reading.num_units,
                load_cpu_s=reading.wait_cpu_s / reading.num_units,
            )
            for index, reading in self._readings
            if not self.configs[index].num_workers
        ]
        return BottleneckLaw(costs, self._cores) if costs else None

    def _units_per_step(self) -> NDArray[np.float64]:
        num_samples = sum(
            reading.num_steps * self.configs[index].batch_size for index, reading in self._readings
        )
        units_per_sample = sum(reading.num_units for _, reading in self._readings) / num_samples
        return np.array([units_per_sample * config.batch_size for config in self.configs])

    def _start_s(self, step_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """What starting a run takes: some steps, and what it took beside these on average.

        Runs that go on in the process of the last one have an average of their own.
        """
        beside_s: dict[bool, list[float]] = {False: [_START_S], True: [_START_S]}
        for index, reading in self._readings:
            if reading.start_s is not None:
                beside_s[reading.started_at_once].append(
                    reading.start_s - _SETTLE_STEPS * float(step_s[index])
                )
        new_s, at_once_s = (max(0.0, float(np.mean(beside_s[key]))) for key in (False, True))
        at_once = np.array([self._bench.starts_at_once(config) for config in self.configs])
        return np.where(at_once, min(at_once_s, new_s), new_s) + _SETTLE_STEPS * step_s
