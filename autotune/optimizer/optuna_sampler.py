"""The adaptive search as an Optuna sampler, for studies whose trials somebody else runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.axes import WITHOUT_WORKERS
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.optimizer.adaptive import AdaptiveOptimizer, Reading, ShortTrial
from autotune.space import Space

# What a trial is taken to have measured where it does not say, in seconds.
_MEASURED_S = 1.0


class AdaptiveSampler(optuna.samplers.BaseSampler):
    """Suggests settings from which the most is expected for the throughput of the final choice.

    This is how `autotune run` chooses its next configuration, for any study that maximises units
    per second. Each axis is to be suggested by `trial.suggest_categorical(NAME, VALUES)`, with the
    values of the space.

    A trial may say more than its value, in user attributes: `measured_s`, the seconds of steps that
    the value comes from, and `data_wait_share`, the share of these that the loop waited for data.
    Without workers the latter tells what workers could bring.

    Args:
        space: The axes and their values.
        baseline: What the axes that the space lacks stay at; it is suggested first, or where it is
            not in the space, the first of the space.
        usable_cores: Cores that the loop may use.
        seed: For ties, which are decided by drawing.
    """

    def __init__(
        self, space: Space, baseline: ThroughputConfig, *, usable_cores: int, seed: int = 0
    ) -> None:
        self._space = space
        self._baseline = baseline
        self._configs = space.configurations(baseline)
        self._cores = usable_cores
        self._seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every axis; see the base class."""
        return {name: CategoricalDistribution(values) for name, values in self._space.axes.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next settings; see the base class."""
        optimizer = AdaptiveOptimizer(
            self._configs,
            self._baseline if self._baseline in self._configs else self._configs[0],
            usable_cores=self._cores,
            block_s=_MEASURED_S,
            seed=self._seed,
        )
        optimizer.learn(self._visits(study.get_trials(deepcopy=False)))
        chosen = optimizer.suggest(now_s=time.time()).to_dict()
        # A value that the chosen configuration does not use is the first of its axis.
        return {
            name: chosen[name] if chosen[name] in values else values[0]
            for name, values in self._space.axes.items()
        }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:  # noqa: ANN401
        """For parameters that are no axis, any value; see the base class."""
        sampler = optuna.samplers.RandomSampler(seed=self._seed + trial.number)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _visits(self, trials: Iterable[FrozenTrial]) -> Iterator[ShortTrial]:
        by_settings = {self._key(config.to_dict()): config for config in self._configs}
        for trial in trials:
            config = by_settings.get(self._key(trial.params))
            if config is None:
                continue
            if trial.state != TrialState.COMPLETE or not trial.values or trial.values[0] <= 0:
                # One that still runs is not suggested again, either.
                failure = Failure(cause=FailureCause.CRASHED, message="the trial gave no rate")
                yield ShortTrial(config=config, outcome=failure)
            else:
                yield ShortTrial(config=config, outcome=_reading_of(trial, config))

    def _key(self, settings: dict[str, Any]) -> tuple[object, ...]:
        used = dict(settings)
        if not used.get("num_workers", self._baseline.num_workers):
            used |= WITHOUT_WORKERS
        return tuple(used.get(name) for name in self._space.axes)


def _reading_of(trial: FrozenTrial, config: ThroughputConfig) -> Reading:
    assert trial.values is not None
    duration_s = float(trial.user_attrs.get("measured_s", _MEASURED_S))
    num_units = trial.values[0] * duration_s
    wait_s = float(trial.user_attrs.get("data_wait_share", 0.0)) * duration_s
    ended = trial.datetime_complete or trial.datetime_start
    return Reading(
        at_s=ended.timestamp() if ended else 0.0,
        duration_s=duration_s,
        num_units=num_units,
        # As if the unit were the sample: steps matter for what a measurement takes, and no more.
        num_steps=max(1, round(num_units / config.batch_size)),
        wait_s=wait_s,
        lost_s=wait_s,
        wait_cpu_s=wait_s,
    )
