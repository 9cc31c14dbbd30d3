"""What a loop's throughput should be with settings that have not run, from those that have.

A loop without workers waits for a batch and then computes: one trial tells both costs. With workers
it tells the step's, and what loading costs where the loop waits for it. What they are for other
batch sizes and threads follows from a model with few coefficients, none negative; what workers
bring follows from the bounds of a pipeline. The model is a first guess, to which
`posterior.Posterior` adds how far off it is.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autotune.axes import AXES
from autotune.config import ThroughputConfig

Array = NDArray[np.float64]
# Of a step, what is taken to be the same for any batch, and what of the rest to be done by all
# threads, until trials tell; and what that is worth beside one trial.
_FIXED_SHARE, _PARALLEL_SHARE, _PRIOR_WEIGHT = 0.2, 0.5, 0.1
# Less than any cost: what is measured as 0 has no logarithm.
_TINY_S = 1e-12
# Where several bounds lie close to each other, all are felt: the higher, the sharper the corner.
_SHARPNESS = 8.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one trial took, in seconds per unit.

    Attributes:
        config: What ran.
        step_s: The training step.
        load_s: Loading the batch, by one process.
        load_cpu_s: CPU seconds of that.
        device_share: Share of the step in which a device computed, which it does for each sample;
            the rest is the host's, the same for any batch. None where there is no device, or that
            is not known.
    """

    config: ThroughputConfig
    step_s: float
    load_s: float
    load_cpu_s: float
    device_share: float | None = None

    def of_one_rank(self) -> Costs:
        """The same in seconds per unit of one rank, of which all train at a time."""
        number = self.config.num_ranks
        return dataclasses.replace(
            self,
            step_s=number * self.step_s,
            load_s=number * self.load_s,
            load_cpu_s=number * self.load_cpu_s,
        )


class BottleneckModel:
    """Seconds per unit for any configuration.

    A step of B samples with T threads takes s0 + s1 B + s2 B/T + s3/T; loading takes l0 + l1 B.
    With W workers on C cores, a unit takes as long as the longest of: the step; its loading by W
    workers; and the CPU time of both, spread over all cores.

    Where several ranks train together, all of this is of one of them and its share of the cores.

    What the garbage collector and the memory allocator do is part of both costs, so that the trials
    of each of their settings are fitted by themselves. Settings without trials are taken to cost
    what those do of which they share most; the first trial's, where several do.

    Args:
        costs: Of trials without workers, or of the baseline's where there are none; at least one.
        usable_cores: Cores that the loop may use.
    """

    def __init__(self, costs: Sequence[Costs], usable_cores: float) -> None:
        self._cores = usable_cores
        # The rate of a job is that of all its ranks.
        costs = [found.of_one_rank() for found in costs]
        by_words: dict[tuple[str, ...], list[Costs]] = {}
        for found in costs:
            by_words.setdefault(_words(found.config), []).append(found)
        words = _words(costs[0].config)
        first = _Coefficients.of(by_words.pop(words))
        others = {words: first.refitted(found) for words, found in by_words.items()}
        self._fits = {words: first, **others}

    def seconds_per_unit(self, configs: Iterable[ThroughputConfig]) -> Array:
        """For each configuration, shape [N]."""
        configs = tuple(configs)
        _, threads = _sizes(configs)
        workers = np.array([config.num_workers for config in configs], dtype=float)
        cores = self._cores / np.array([config.ranks_per_node for config in configs])
        num_ranks = np.array([config.num_ranks for config in configs], dtype=float)
        step_s, load_s, load_cpu_s = self._costs(configs)
        bounds = np.stack(
            [
                step_s,
                load_s / np.maximum(workers, 1.0),
                # Threads that wait for each other spin: a step takes the time of them all.
                (np.minimum(threads, cores) * step_s + load_cpu_s) / cores,
            ]
        )
        with_workers = (bounds**_SHARPNESS).sum(axis=0) ** (1 / _SHARPNESS)
        seconds = np.where(workers > 0, with_workers, step_s + load_s)
        return np.asarray(seconds / num_ranks)

    def gain(self, configs: Iterable[ThroughputConfig]) -> Array:
        """What loading that takes no time would bring, as a logarithm of rates, [N]."""
        step_s, load_s, _ = self._costs(tuple(configs))
        return np.asarray(np.log1p(load_s / step_s))

    def _costs(self, configs: Sequence[ThroughputConfig]) -> tuple[Array, Array, Array]:
        """Of a unit, the seconds of the step, those of loading, and CPU seconds of it, [N] each."""
        terms = _terms(*_sizes(configs))
        found = [self._fit_of(_words(config)) for config in configs]
        step_s = (terms * np.stack([fit.step for fit in found])).sum(axis=1)
        load_s = (terms[:, :2] * np.stack([fit.load for fit in found])).sum(axis=1)
        return step_s, load_s, load_s * np.array([fit.load_cpu_share for fit in found])

    def _fit_of(self, words: tuple[str, ...]) -> _Coefficients:
        return self._fits[max(self._fits, key=lambda known: sum(map(operator.eq, known, words)))]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Coefficients:
    """What trials with one setting of collector and allocator come to.

    Attributes:
        step: s0, s1, s2 and s3 of `BottleneckModel`, [4].
        load: l0 and l1, [2].
        load_cpu_share: CPU seconds in a second of loading, 0 to 1.
    """

    step: Array
    load: Array
    load_cpu_share: float

    @classmethod
    def of(cls, costs: Sequence[Costs]) -> _Coefficients:
        """From these trials alone."""
        first = costs[0]
        terms = _terms(*_sizes([first.config]))[0]
        # Shares of the first trial's step, as coefficients of `_terms`.
        fixed, parallel = _FIXED_SHARE, _PARALLEL_SHARE
        if first.device_share is not None:
            fixed, parallel = 1 - first.device_share, 0.0
        shares = np.array([fixed, (1 - fixed) * (1 - parallel), (1 - fixed) * parallel, 0.0])
        # What nothing tells of loading is shared evenly.
        load = np.full(2, 0.5) * max(first.load_s, _TINY_S) / terms[:2]
        return cls._fitted(costs, step=first.step_s * shares / terms, load=load)

    def refitted(self, costs: Sequence[Costs]) -> _Coefficients:
        """From trials with another setting: where they are silent, these costs in proportion."""
        terms = _terms(*_sizes([found.config for found in costs]))

        def ratio(seconds: Sequence[float], expected: Array) -> float:
            logs = np.log(np.maximum(seconds, _TINY_S)) - np.log(np.maximum(expected, _TINY_S))
            return float(np.exp(logs.mean()))

        step = ratio([found.step_s for found in costs], terms @ self.step)
        load = ratio([found.load_s for found in costs], terms[:, :2] @ self.load)
        return self._fitted(costs, step=step * self.step, load=load * self.load)

    @classmethod
    def _fitted(cls, costs: Sequence[Costs], *, step: Array, load: Array) -> _Coefficients:
        """Fitted to trials, given what the coefficients are expected to be."""
        configs = [found.config for found in costs]
        total_s = sum(found.load_s for found in costs)
        cpu_s = sum(found.load_cpu_s for found in costs)
        return cls(
            step=_fit(configs, [found.step_s for found in costs], step),
            load=_fit(configs, [found.load_s for found in costs], load),
            load_cpu_share=min(1.0, cpu_s / total_s) if total_s else 1.0,
        )


def _words(config: ThroughputConfig) -> tuple[str, ...]:
    """Those settings of the step that are words: each is a loop of its own."""
    return tuple(getattr(config, name) for name, axis in AXES.items() if axis.splits_costs)


def _sizes(configs: Sequence[ThroughputConfig]) -> tuple[Array, Array]:
    batch = np.array([config.batch_size for config in configs], dtype=float)
    threads = np.array([config.num_threads or 1 for config in configs], dtype=float)
    return batch, threads


def _terms(batch: Array, threads: Array) -> Array:
    """What the coefficients of a cost per unit are multiplied with, [N, 4]."""
    return np.stack([1 / batch, np.ones_like(batch), 1 / threads, 1 / (batch * threads)], axis=1)


def _fit(
    configs: Sequence[ThroughputConfig], seconds: Sequence[float], first_guess: Array
) -> Array:
    """Coefficients that are least wrong relative to the seconds, none of them negative.

    Those that nothing tells stay at the first_guess.
    """
    terms = _terms(*_sizes(configs))[:, : len(first_guess)]
    scale = np.maximum(np.array(seconds), _TINY_S)
    rows, wanted = terms / scale[:, None], np.ones(len(scale))
    at_least = np.maximum(first_guess, 1e-3 * scale[0] / terms[0])
    rows = np.vstack([rows, _PRIOR_WEIGHT * np.diag(1 / at_least)])
    wanted = np.concatenate([wanted, _PRIOR_WEIGHT * first_guess / at_least])
    found, _ = nnls(rows, wanted)
    return np.asarray(found)
