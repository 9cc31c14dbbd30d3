"""The adaptive optimizer: asked what to measure next, told what that showed.

It asks for the trial that it expects to gain the most from, and stops when that is little. It runs
nothing: `tuning.search_loop` does, live or on a recorded table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from autotune.config import ThroughputConfig
from autotune.intervals import RunSpread
from autotune.measurement import Failure
from autotune.memory_order import needs_as_much
from autotune.optimizer.acquisition import Proposal, propose
from autotune.optimizer.bottleneck_model import BottleneckModel, Costs
from autotune.optimizer.posterior import (
    DRIFT_S,
    SAME_MACHINE_S,
    Hyperparameters,
    Kernel,
    Observation,
    Posterior,
    fit_hyperparameters,
)
from autotune.optimizer.standings import Expectations, Standing, candidates, measured_gains
from autotune.optimizer.trial_cost import ConfirmingCost, TrialCost

# A second of tuning must bring more than it costs in training that goes on for so long.
HORIZON_S = 3 * 3600.0
# The search ends sooner where it is so sure that the choice is within 2 % of the fastest.
_SURE = 0.9
# What is ahead by no more than this is not worth telling apart. Less than what the choice takes for
# equal: a single trial rarely shows 1 %, and several do.
_TIE = 0.002
# How far an earlier search of the same loop may be off, beyond its own uncertainty.
_AFTER_ANOTHER = Hyperparameters(step=0.05, batch=0.03, words=0.05, workers=0.07)
# Hyperparameters are fitted anew whenever there are so many times as many observations, and when
# one lies so many standard deviations from what was expected.
_REFIT = 1.5
_FIRST_FIT = 8
_SURPRISE = 4.0
# Of a first guess of a standard deviation whose logarithm may be off by 0.5: 1 / (2 · 0.5²). And
# what is never exceeded, since machines do not stay as they are.
_GUESSED_FREEDOM, _MOST_FREEDOM = 2.0, 10.0
# A confirming run is measured for so long by default.
_RUN_S = 2.5
# A loop with workers that waits for so large a share of its time is held back by loading.
_WAITS = 0.1
# A round of the confirmation takes up to so many times as long as expected.
_AT_MOST = 1.1
# What is expected to be so many standard deviations slower than the best is not missed.
_FAR = 3.0
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
        device_share: Share of the time in which a device computed; None where that is not known.
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
    device_share: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShortTrial:
    """A trial that has ended: of which configuration, and what it showed or why it failed."""

    config: ThroughputConfig
    outcome: Reading | Failure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to run next: a short trial of a configuration, of so many blocks."""

    config: ThroughputConfig
    num_blocks: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Nothing more is asked for.

    Attributes:
        complete: Whether nothing is left that is worth its time; otherwise the time is up.
    """

    complete: bool


def never(_: ThroughputConfig) -> bool:
    """For what holds of no configuration."""
    return False


class AdaptiveOptimizer:
    """Chooses the trials of one space, by ask and tell.

    Args:
        configs: The space.
        baseline: Where the search starts; it is taken into the space.
        usable_cores: Cores that the loop may use.
        block_s: Shortest duration of a block.
        horizon_s: How long training will go on.
        confirming: What confirming a configuration takes. What there would be no time left for to
            confirm is not looked at, and the best so far is left that time. None where nothing is
            confirmed.
        starts_at_once: Whether a trial of a configuration would go on in the process of the last
            one, at little cost.
        prior: What an earlier search of the same loop expected of all configurations (see
            `posterior`), in place of the bottleneck model; None where there was none.
        hyperparameters: What the parts of the posterior's sum are taken for at first; of those of
            an earlier search, what its processes, machine and noise did.
        rules_out: Whether a configuration that never ran is not to be tried, by what failures of
            others teach (see `lessons`).
        seed: For the probabilities, which are reckoned by drawing.
    """

    def __init__(
        self,
        configs: Sequence[ThroughputConfig],
        baseline: ThroughputConfig,
        *,
        usable_cores: float,
        block_s: float,
        horizon_s: float = HORIZON_S,
        confirming: ConfirmingCost | None = None,
        prior: Posterior | None = None,
        hyperparameters: Hyperparameters | None = None,
        starts_at_once: Callable[[ThroughputConfig], bool] = never,
        rules_out: Callable[[ThroughputConfig], bool] = never,
        seed: int = 0,
    ) -> None:
        self.configs = tuple(dict.fromkeys((baseline, *configs)))
        self._prior = prior
        self._places = {config: place for place, config in enumerate(self.configs)}
        self._starts_at_once = starts_at_once
        self._cores = usable_cores
        self._block_s = block_s
        self._horizon_s = horizon_s
        self._confirming = confirming
        self._rules_out = rules_out
        self._seed = seed
        self._kernel = Kernel.of(self.configs)
        self._first_hyperparameters = hyperparameters or Hyperparameters()
        if prior is not None:
            self._first_hyperparameters = _AFTER_ANOTHER.with_noise_of(self._first_hyperparameters)
            self._kernel = dataclasses.replace(self._kernel, earlier=prior.covariance)
        self._hyperparameters = self._first_hyperparameters
        self._num_fitted = 0
        # Places of configurations, with what their runs showed.
        self._readings: list[tuple[int, Reading]] = []
        self._failed: dict[int, Failure] = {}

    def learn(self, trials: Iterable[ShortTrial]) -> None:
        """Take trials of earlier runs into account; those of other spaces are not.

        What ran once can run, even if it failed at another time.
        """
        known = [trial for trial in trials if trial.config in self._places]
        for trial in known:
            self.tell(trial)
        for trial in known:
            if not isinstance(trial.outcome, Failure):
                self._failed.pop(self._places[trial.config], None)

    def tell(self, trial: ShortTrial) -> None:
        """Take the trial into account that was asked for."""
        index = self._places[trial.config]
        if isinstance(trial.outcome, Failure):
            self._failed[index] = trial.outcome
        else:
            self._readings.append((index, trial.outcome))

    def ask(
        self,
        *,
        now_s: float,
        left_s: float = math.inf,
        reserved_s: float = 0.0,
        pending: Collection[ThroughputConfig] = (),
    ) -> Request | Stop:
        """The trial that is worth most; a stop where the choice is sure, or none is worth its time.

        The first is of the baseline, once.

        Args:
            now_s: The time, on the clock of the readings.
            left_s: Seconds that are left for this trial and the confirmation.
            reserved_s: Of these, what the confirmation is to have at least.
            pending: Configurations of which others run a trial now. They are not asked for, and
                are taken to show what is expected of them, so that what they will tell is not
                measured twice ("kriging believer": Ginsbourger, Le Riche & Carraro 2010).
        """
        if 0 not in self._measured and 0 not in self._failed:
            return Request(config=self.configs[0], num_blocks=1)
        if not self._readings:
            return Stop(complete=False)
        posterior = self._posterior()
        places = [self._places[config] for config in pending if config in self._places]
        believed = posterior
        if places:
            believed = posterior.believing(places, at_s=now_s, duration_s=self._block_s)
        eligible = self._eligible(posterior, left_s)
        best = self._rank(posterior, eligible)[0]
        rounds_s = self._rounds_s(posterior)
        # What was tried may turn out to be the best, or may not.
        best_s = rounds_s[self._places[best.config]] if best.was_measured else 0.0
        kept_s = np.maximum(max(reserved_s, best_s), rounds_s)
        eligible[places] = False
        proposal = self._propose(believed, eligible, now_s, left_s - kept_s)
        if proposal is None:
            return Stop(complete=False)
        if best.probability < _SURE and proposal.gain_per_s * self._horizon_s >= 1.0:
            config = self.configs[proposal.index]
            return Request(config=config, num_blocks=proposal.num_blocks)
        if best.was_measured or best.config in pending:
            # What lies far behind is not missed, had it been left out for its time.
            near = posterior.within_reach(self._may_run(), _FAR)
            return Stop(complete=bool(self._eligible(posterior, left_s)[near].all()))
        # What was never measured is no answer, however good it is expected to be.
        return self._check(best, posterior, left_s - reserved_s)

    def ask_for_check(self, *, left_s: float) -> Request | Stop:
        """A trial of the best configuration where none was made, if it fits.

        Args:
            left_s: Seconds that are left for it and a round of the confirmation.
        """
        posterior = self._posterior()
        best = self._rank(posterior, self._eligible(posterior, left_s))[0]
        if best.was_measured:
            return Stop(complete=True)
        place = self._places[best.config]
        return self._check(best, posterior, left_s - self._rounds_s(posterior)[place])

    def _check(self, best: Standing, posterior: Posterior, left_s: float) -> Request | Stop:
        place = self._places[best.config]
        start_s, block_s = self._costs_s(posterior)
        if start_s[place] + block_s[place] > left_s:
            return Stop(complete=False)
        return Request(config=best.config, num_blocks=1)

    @property
    def num_tried(self) -> int:
        """Configurations that were tried."""
        return len(self._measured | set(self._failed))

    def suggest(self, *, now_s: float) -> ThroughputConfig:
        """The configuration of which a run is worth most; where none ran, the first that may.

        As `ask` without an end, for studies that somebody else ends.
        """
        may_run, proposal = self._may_run(), None
        if self._readings:
            left_s = np.full(len(self.configs), math.inf)
            proposal = self._propose(self._posterior(), may_run, now_s, left_s)
        return self.configs[proposal.index if proposal else int(np.argmax(may_run))]

    def posterior(self) -> Posterior | None:
        """What is expected of all configurations, the baseline first; None where nothing ran."""
        return self._posterior() if self._readings else None

    @property
    def hyperparameters(self) -> Hyperparameters:
        """What the parts of the posterior's sum are taken for by now."""
        return self._hyperparameters

    def run_spread(self) -> RunSpread | None:
        """How much confirming runs of one configuration differ; None with too few trials.

        How fresh processes differ stays a guess: forked ones share what chance gave the process
        that they come from. What the machine does is known the better, the longer it was looked at;
        but what was seen in minutes is never taken for sure.
        """
        if len(self._readings) < _FIRST_FIT:
            return None
        if not self._num_fitted:
            self._posterior()
        found = self._hyperparameters
        times_s = [reading.at_s for _, reading in self._readings]
        times = {at_s // DRIFT_S for at_s in times_s if max(times_s) - at_s < SAME_MACHINE_S}
        noise = max(found.workers_noise, found.noise)
        return RunSpread(
            own=math.hypot(found.process, noise / math.sqrt(_RUN_S)),
            own_freedom=_GUESSED_FREEDOM,
            drift=found.drift,
            drift_freedom=min(_GUESSED_FREEDOM + len(times) / 2, _MOST_FREEDOM),
        )

    def standings(self, *, left_s: float = math.inf) -> list[Standing]:
        """Configurations, the one to choose first; those that cannot run are left out.

        Args:
            left_s: Seconds that are left: what could not be confirmed in these is left out as well.
        """
        posterior = self._posterior()
        return self._rank(posterior, self._eligible(posterior, left_s))

    def to_confirm(
        self,
        excluded: Set[ThroughputConfig],
        *,
        measured_only: bool = False,
        left_s: float = math.inf,
    ) -> tuple[ThroughputConfig, ...]:
        """What is to be confirmed, two at most: see `candidates`.

        The second is the first with those settings taken back that are not shown to gain: the
        confirmation, where both are measured in turn, tells a few per cent that the search cannot.

        Args:
            excluded: What is not.
            measured_only: See `candidates`.
            left_s: Seconds that are left. What takes longer is no candidate where anything else is,
                and there is a second only if they allow a round with both.
        """
        everything, fitting = self.standings(), self.standings(left_s=left_s)
        # A gain that was measured is confirmed even if that takes longer than there is time.
        is_gain = any(found.config not in excluded for found in measured_gains(fitting))
        found = (candidates(fitting, excluded) if is_gain else ()) or (
            candidates(measured_gains(everything), excluded)
            or candidates(fitting, excluded, measured_only=measured_only)
            or candidates(everything, excluded, measured_only=measured_only)
        )
        simpler = self.simpler(found[0]) if found else None
        if simpler is None or simpler in excluded or self.round_s((*found, simpler)) > left_s:
            return found
        return (*found, simpler)

    def round_s(self, configs: Sequence[ThroughputConfig]) -> float:
        """What a round of the confirmation takes with some configurations and the baseline."""
        rounds_s = self._rounds_s(self._posterior())
        each_s = rounds_s[[self._places[config] for config in configs]] - rounds_s[0]
        return float(rounds_s[0] + each_s.sum())

    def simpler(self, config: ThroughputConfig) -> ThroughputConfig | None:
        """See `Expectations`."""
        return self._expectations(self._posterior()).simpler(config)

    def _rank(
        self, posterior: Posterior, eligible: NDArray[np.bool_] | None = None
    ) -> list[Standing]:
        return self._expectations(posterior, eligible).rank(self._seed)

    def _expectations(
        self, posterior: Posterior, eligible: NDArray[np.bool_] | None = None
    ) -> Expectations:
        return Expectations(
            configs=self.configs,
            posterior=posterior,
            may_run=self._may_run() if eligible is None else eligible,
            measured=self._measured,
        )

    def _eligible(self, posterior: Posterior, left_s: float) -> NDArray[np.bool_]:
        """What can run, and can be confirmed in the time that is left, [N]; the baseline anyway."""
        start_s, block_s = self._costs_s(posterior)
        needed_s = self._rounds_s(posterior)
        if self._confirming is not None:
            is_new = np.ones(len(self.configs), dtype=bool)
            is_new[list(self._measured)] = False
            needed_s = needed_s + is_new * (start_s + block_s)
        fits = needed_s <= left_s
        fits[0] = True
        return np.asarray(self._may_run() & fits)

    def _costs_s(self, posterior: Posterior) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What starting a run of each configuration takes, and a block, [N] each."""
        step_s = self._step_s(posterior)
        return self._start_s(step_s), np.maximum(self._block_s, step_s)

    def _rounds_s(self, posterior: Posterior) -> NDArray[np.float64]:
        """What a round of the confirmation takes with each configuration and the baseline, [N]."""
        if self._confirming is None:
            return np.zeros(len(self.configs))
        accumulated = [float(config.gradient_accumulation_steps) for config in self.configs]
        runs_s = self._confirming.run_s(self._step_s(posterior), np.array(accumulated))
        return _AT_MOST * np.concatenate((runs_s[:1], runs_s[0] + runs_s[1:]))

    def _step_s(self, posterior: Posterior) -> NDArray[np.float64]:
        """What a micro-step of each configuration takes, [N]."""
        return np.asarray(np.exp(-posterior.mean) * self._units_per_step())

    def _propose(
        self,
        posterior: Posterior,
        eligible: NDArray[np.bool_],
        now_s: float,
        left_s: NDArray[np.float64],
    ) -> Proposal | None:
        start_s, block_s = self._costs_s(posterior)
        return propose(
            posterior,
            eligible,
            start_s=start_s,
            block_s=block_s,
            now_s=now_s,
            left_s=left_s,
            tie=_TIE,
        )

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

    def _posterior(self) -> Posterior:
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
        model = self._bottleneck_model()
        kernel = self._kernel
        prior_mean = np.zeros(len(self.configs)) if self._prior is None else self._prior.mean
        if model is not None:
            kernel = dataclasses.replace(kernel, gain=model.gain(self.configs))
            if self._prior is None:
                prior_mean = -np.log(model.seconds_per_unit(self.configs))
        posterior = Posterior(kernel, self._hyperparameters, prior_mean, observations)
        is_due = len(observations) >= max(_FIRST_FIT, _REFIT * self._num_fitted)
        is_surprised = posterior.surprise > _SURPRISE and len(observations) > self._num_fitted
        if is_due or is_surprised:
            self._hyperparameters = fit_hyperparameters(
                kernel, prior_mean, observations, self._first_hyperparameters
            )
            self._num_fitted = len(observations)
            posterior = Posterior(kernel, self._hyperparameters, prior_mean, observations)
        return posterior

    def _bottleneck_model(self) -> BottleneckModel | None:
        """What the runs without workers tell of all others; where there are none, the baseline's.

        None where neither tells what loading costs.
        """
        found = [
            (config, reading)
            for index, reading in self._readings
            if not (config := self.configs[index]).num_workers
        ] or [
            (self.configs[0], reading)
            for index, reading in self._readings
            if index == 0 and reading.lost_s >= _WAITS * reading.duration_s
        ]
        costs = [_costs(config, reading) for config, reading in found]
        return BottleneckModel(costs, self._cores) if costs else None

    def _units_per_step(self) -> NDArray[np.float64]:
        num_samples = sum(
            reading.num_steps * _samples_per_step(self.configs[index])
            for index, reading in self._readings
        )
        units_per_sample = sum(reading.num_units for _, reading in self._readings) / num_samples
        return np.array([units_per_sample * _samples_per_step(config) for config in self.configs])

    def _start_s(self, step_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """What starting a run takes: some steps, and what it took beside these on average.

        Runs that go on in the process of the last one have an average of their own.
        """
        new, running = (
            TrialCost.learned(
                (reading.start_s, float(step_s[index]))
                for index, reading in self._readings
                if reading.start_s is not None and reading.started_at_once is at_once
            )
            for at_once in (False, True)
        )
        at_once = np.array([self._starts_at_once(config) for config in self.configs])
        new_s = new.start_s(step_s)
        return np.where(at_once, np.minimum(running.start_s(step_s), new_s), new_s)


def _samples_per_step(config: ThroughputConfig) -> int:
    """Of all ranks."""
    return config.batch_size * config.num_ranks


def _costs(config: ThroughputConfig, reading: Reading) -> Costs:
    """What a run tells of step and loading; one with workers has waited for these all along."""
    step_s = max(1e-12, (reading.duration_s - reading.lost_s) / reading.num_units)
    load_s, load_cpu_s = (
        seconds / reading.num_units for seconds in (reading.wait_s, reading.wait_cpu_s)
    )
    if config.num_workers:
        load_s = load_cpu_s = config.num_workers * reading.duration_s / reading.num_units
    share = reading.device_share
    if share is not None:
        share = min(1.0, share * reading.duration_s / (step_s * reading.num_units))
    return Costs(
        config=config, step_s=step_s, load_s=load_s, load_cpu_s=load_cpu_s, device_share=share
    )
