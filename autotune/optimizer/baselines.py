"""What to measure next: the grid in a sensible order, or one of Optuna's samplers."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from autotune.axes import AXES, WITHOUT_WORKERS, AxisValue, Kind
from autotune.config import ThroughputConfig
from autotune.study.definition import SamplerName

# A sampler that keeps proposing what may not run is passed over after so many tries.
_MAX_REPEATS = 10


class Proposer(Protocol):
    """Chooses among configurations that have not run."""

    def propose(
        self,
        candidates: Sequence[ThroughputConfig],
        measured: Mapping[ThroughputConfig, float],
        bound: Callable[[ThroughputConfig], float],
    ) -> ThroughputConfig:
        """The next configuration.

        Args:
            candidates: What may run; at least one.
            measured: Units per second of those that ran; 0 for those that failed.
            bound: What a configuration can reach at most, in units per second.
        """


class GridProposer:
    """Everything, in the order that settles most soonest.

    Configurations without workers come first: each tells the cost of the step and of the loading
    at once, and so bounds all those that differ from it in workers only.
    """

    def propose(
        self,
        candidates: Sequence[ThroughputConfig],
        measured: Mapping[ThroughputConfig, float],
        bound: Callable[[ThroughputConfig], float],
    ) -> ThroughputConfig:
        """The next configuration; see `Proposer`."""

        def order(config: ThroughputConfig) -> tuple[float, ...]:
            if config.num_workers == 0:
                return (0, -(config.num_threads or 0), -config.batch_size)
            return (1, -bound(config), config.num_workers, config.num_prefetched)

        return min(candidates, key=order)


class SamplerProposer:
    """One of Optuna's samplers, on the ranks of the axes' values, in a study of its own.

    Ranks keep the order of the values and their even spacing, whatever the values are; words have
    neither, and their ranks are categories. The study is kept in memory: it sees also the proposals
    that were turned down because they had run.
    """

    def __init__(
        self,
        sampler: optuna.samplers.BaseSampler,
        axes: Mapping[str, Sequence[AxisValue]],
        seed: int,
    ) -> None:
        self._axes = axes
        self._random = random.Random(seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._values: dict[frozenset[tuple[str, int]], float] = {}

    def propose(
        self,
        candidates: Sequence[ThroughputConfig],
        measured: Mapping[ThroughputConfig, float],
        bound: Callable[[ThroughputConfig], float],
    ) -> ThroughputConfig:
        """The next configuration; see `Proposer`."""
        self._learn(measured)
        by_ranks = {self._ranks(config): config for config in candidates}
        for _ in range(_MAX_REPEATS):
            trial = self._study.ask()
            ranks = {
                name: self._suggest(trial, name)
                for name in self._axes
                if name not in WITHOUT_WORKERS
            }
            workers = self._axes.get("num_workers")
            if workers is None or workers[ranks["num_workers"]] != 0:
                needing = [name for name in self._axes if name in WITHOUT_WORKERS]
                ranks |= {name: self._suggest(trial, name) for name in needing}
            chosen = by_ranks.get(frozenset(ranks.items()))
            if chosen is not None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                return chosen
            # Told what is known of it, the sampler looks elsewhere. What a bound has ruled out is
            # no better than the worst.
            value = self._values.get(frozenset(ranks.items()), 0.0)
            self._study.tell(trial, value)
        return self._random.choice(list(candidates))

    def _learn(self, measured: Mapping[ThroughputConfig, float]) -> None:
        for config, units_per_s in measured.items():
            ranks = self._ranks(config)
            if ranks is None or ranks in self._values:
                continue
            self._values[ranks] = units_per_s
            params = dict(ranks)
            distributions: dict[str, BaseDistribution] = {
                name: self._distribution(name) for name in params
            }
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=distributions, value=units_per_s
                )
            )

    def _suggest(self, trial: optuna.Trial, name: str) -> int:
        distribution = self._distribution(name)
        if isinstance(distribution, CategoricalDistribution):
            return int(trial.suggest_categorical(name, distribution.choices) or 0)
        return trial.suggest_int(name, distribution.low, distribution.high)

    def _distribution(self, name: str) -> CategoricalDistribution | IntDistribution:
        num_values = len(self._axes[name])
        if AXES[name].kind is Kind.WORD:
            return CategoricalDistribution(range(num_values))
        return IntDistribution(0, num_values - 1)

    def _ranks(self, config: ThroughputConfig) -> frozenset[tuple[str, int]] | None:
        """The rank of each setting on its axis; None where a value is not on it."""
        settings = config.to_dict()
        ranks = []
        for name, values in self._axes.items():
            value = settings[name]
            if value is None or (name in WITHOUT_WORKERS and not config.num_workers):
                continue
            if value not in values:
                return None
            ranks.append((name, list(values).index(value)))
        return frozenset(ranks)


def make_proposer(
    name: SamplerName, axes: Mapping[str, Sequence[AxisValue]], seed: int
) -> Proposer:
    """The proposer called `name`."""
    if name is SamplerName.GRID:
        return GridProposer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        samplers: dict[SamplerName, Callable[[], optuna.samplers.BaseSampler]] = {
            SamplerName.RANDOM: lambda: optuna.samplers.RandomSampler(seed=seed),
            SamplerName.TPE: lambda: optuna.samplers.TPESampler(seed=seed),
            SamplerName.GP: lambda: optuna.samplers.GPSampler(seed=seed),
        }
        return SamplerProposer(samplers[name](), axes, seed)
