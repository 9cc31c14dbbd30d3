"""What is expected of every configuration's throughput after some have been measured.

The logarithm of a measured rate is taken for a sum: what the bottleneck model says, how far that is
off for the configuration, what is peculiar to the process, what the machine does at the time, and
noise. All are Gaussian; configurations that resemble each other are off alike, and measurements
close in time share the machine's drift, so that each tells of all others.

Source: Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning", chapters 2 and 5.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from autotune.axes import AXES, Kind
from autotune.config import ThroughputConfig

Array = NDArray[np.float64]
Integers = NDArray[np.intp]
# The level of all rates: nothing is known of it beforehand.
_LEVEL = 1.0
# Workers cost something, too: how far the bottleneck model may be off where they bring nothing.
_LEAST_WORKERS = 0.03
# Doublings of the batch over which a sudden change of its cost is forgotten: what no longer fits
# into a cache, or into memory, makes larger batches slower at once.
_CHANGE = 3.0
# Seconds within which the machine's speed is about the same.
DRIFT_S = 20.0
# What was measured on other machines is said to have been so much earlier, and more (see
# `study.relative`). Of the logarithm of rates, by how much their levels may still differ.
SAME_MACHINE_S, _MACHINES_SD = 1e8, 0.05
# How far off the hyperparameters' first guesses may be, in natural logarithms. A loop that sleeps
# hardly varies at all: what processes and noise do differs from machine to machine. Sudden changes
# are small in most loops, and a factor of ten in one that begins to swap.
_LOG_SD, _NOISE_LOG_SD, _CHANGE_LOG_SD = 0.2, 0.5, 1.0
# Beyond so many times that, nothing is sought.
_REACH = 4.0
_LOG_SDS = {
    "process": _NOISE_LOG_SD,
    "drift": _NOISE_LOG_SD,
    "noise": _NOISE_LOG_SD,
    "workers_noise": _NOISE_LOG_SD,
    "batch": _CHANGE_LOG_SD,
    "words": _CHANGE_LOG_SD,
}
_JITTER = 1e-9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one run showed.

    Attributes:
        index: Of the configuration.
        at_s: When.
        log_rate: Natural logarithm of units per second.
        duration_s: Seconds of steps.
        error: Standard deviation of what else may be wrong with `log_rate`.
    """

    index: int
    at_s: float
    log_rate: float
    duration_s: float
    error: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """Standard deviations on the log scale.

    Attributes:
        step: Of the bottleneck model's error, shared by similar batch sizes and threads.
        batch: Of what changes suddenly from one batch size to the next, whatever the rest.
        words: Of what another word brings, or costs, whatever the rest: of the garbage collector,
            the memory allocator or the precision of products.
        workers: Of its error about workers, shared by similar settings that have some.
        own: Of what is peculiar to one configuration.
        process: Of what is peculiar to one process.
        drift: Of the machine's speed over minutes.
        noise: Of a second of steps without workers.
        workers_noise: Of a second of steps with workers, who come and go.
    """

    step: float = 0.15
    batch: float = 0.1
    words: float = 0.15
    workers: float = 0.25
    own: float = 0.02
    process: float = 0.03
    drift: float = 0.04
    noise: float = 0.02
    workers_noise: float = 0.045

    def with_noise_of(self, other: Self) -> Self:
        """These, with what another search found processes, the machine and noise to do."""
        names = ("process", "drift", "noise", "workers_noise")
        return dataclasses.replace(self, **{name: getattr(other, name) for name in names})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernel:
    """How alike configurations are, for all pairs, [N, N] each; 1 for a configuration with itself.

    Attributes:
        step: By what the step depends on.
        batch: By the batch size alone, and less smoothly.
        words: Of those settings of the step that are words, the share that both have in common;
            what all configurations have in common does not count, and is their level.
        workers: By everything, among those that have workers; 0 for the others.
        same: 1 for a configuration with itself, else 0.
        has_workers: Which configurations have workers, [N].
        gain: What workers could bring at most, as a logarithm of rates, [N].
        earlier: Covariance of an earlier posterior, whose mean is the prior mean; None without.
    """

    step: Array
    batch: Array
    words: Array
    workers: Array
    same: Array
    has_workers: NDArray[np.bool_]
    gain: Array
    earlier: Array | None = None

    @classmethod
    def of(cls, configs: Sequence[ThroughputConfig]) -> Kernel:
        """Of the configurations of a space; what workers could bring is not known."""
        of_step = _coordinates(configs, needs_workers=False)
        of_workers = _coordinates(configs, needs_workers=True)
        has_workers = np.array([config.num_workers > 0 for config in configs])
        doublings = np.log2([float(config.batch_size) for config in configs])
        return cls(
            step=_alike(of_step),
            batch=np.exp(-np.abs(np.subtract.outer(doublings, doublings)) / _CHANGE),
            words=_words_in_common(configs),
            workers=np.outer(has_workers, has_workers) * _alike([*of_step, *of_workers]),
            same=np.eye(len(configs)),
            has_workers=has_workers,
            gain=np.full(len(configs), np.inf),
        )

    def at(self, index: Integers) -> Kernel:
        """Of these configurations alone, repeats included."""
        pairs = np.ix_(index, index)
        return Kernel(
            step=self.step[pairs],
            batch=self.batch[pairs],
            words=self.words[pairs],
            workers=self.workers[pairs],
            same=self.same[pairs],
            has_workers=self.has_workers[index],
            gain=self.gain[index],
            earlier=None if self.earlier is None else self.earlier[pairs],
        )

    def covariance(self, hyperparameters: Hyperparameters) -> Array:
        """Of the model's error, [N, N]. Where workers can bring little, it cannot be far off."""
        workers = np.minimum(hyperparameters.workers, _LEAST_WORKERS + self.gain)
        return np.asarray(
            _LEVEL**2
            + hyperparameters.step**2 * self.step
            + hyperparameters.batch**2 * self.batch
            + hyperparameters.words**2 * self.words
            + np.outer(workers, workers) * self.workers
            + hyperparameters.own**2 * self.same
            + (0.0 if self.earlier is None else self.earlier)
        )


class Posterior:
    """The posterior over all configurations.

    Attributes:
        mean: Expected logarithm of each configuration's rate, [N].
        covariance: Of these, [N, N].
        surprise: How far the least expected observation lies from what those before it had led to
            expect, in standard deviations.

    Args:
        kernel: Of the space's configurations.
        hyperparameters: How large each part of the sum may be.
        prior_mean: What the bottleneck model says, as logarithms of rates, [N].
        observations: What was seen; at least one.
    """

    def __init__(
        self,
        kernel: Kernel,
        hyperparameters: Hyperparameters,
        prior_mean: Array,
        observations: Sequence[Observation],
    ) -> None:
        self._kernel = kernel
        self._prior_mean, self._observations = prior_mean, tuple(observations)
        self._prior = kernel.covariance(hyperparameters)
        self._hyperparameters = hyperparameters
        self._seen = _Columns.of(observations)
        factor = _factor(kernel.at(self._seen.index), hyperparameters, self._seen)
        residuals = solve_triangular(
            factor, self._seen.log_rate - prior_mean[self._seen.index], lower=True
        )
        # Each row of the factor takes out of an observation what those before it tell.
        self.surprise = float(np.abs(residuals).max())
        self._factor = factor
        self._explained = solve_triangular(factor, self._prior[self._seen.index], lower=True)
        # What went wrong with earlier runs of a configuration is expected of later ones.
        num_runs = np.bincount(self._seen.index, minlength=len(prior_mean))
        errors = np.bincount(
            self._seen.index, weights=self._seen.error**2, minlength=len(prior_mean)
        )
        self._expected_error = errors / np.maximum(1, num_runs)
        self.mean = prior_mean + self._explained.T @ residuals
        self.covariance = self._prior - self._explained.T @ self._explained

    def believing(self, places: Sequence[int], *, at_s: float, duration_s: float) -> Posterior:
        """What will be expected once runs have shown exactly what is expected of them now.

        Args:
            places: Of the configurations that run.
            at_s: When they do.
            duration_s: For how long.
        """
        believed = [
            Observation(
                index=place, at_s=at_s, log_rate=float(self.mean[place]), duration_s=duration_s
            )
            for place in places
        ]
        observations = (*self._observations, *believed)
        return Posterior(self._kernel, self._hyperparameters, self._prior_mean, observations)

    @property
    def variance(self) -> Array:
        """Of each configuration's log rate, [N]."""
        return np.maximum(np.diag(self.covariance), 0.0)

    def outlook(self, index: Integers, at_s: float) -> tuple[Array, Array]:
        """How a run of each of M configurations would move the posterior.

        Args:
            index: Of the configurations, [M].
            at_s: When.

        Returns:
            The covariance of every configuration's log rate with what each would show, [N, M], and
            the variance of that, its noise left out, [M].
        """
        drift = _drift(self._hyperparameters, self._seen, np.full(len(index), at_s))
        told = solve_triangular(
            self._factor, self._prior[np.ix_(self._seen.index, index)] + drift, lower=True
        )
        covariance = self._prior[:, index] - self._explained.T @ told
        own = self._prior[index, index] + self._hyperparameters.drift**2
        own = own + _level_sd(self._seen) ** 2
        return covariance, np.maximum(own - (told**2).sum(axis=0), 0.0)

    def noise(self, index: Integers, duration_s: Array) -> Array:
        """The variance of the noise in runs of M configurations, so many seconds each, [M]."""
        noise = _noise(self._hyperparameters, self._kernel.has_workers[index], duration_s)
        return np.asarray(noise + self._expected_error[index])

    def within_reach(self, may_run: NDArray[np.bool_], num_sds: float) -> Integers:
        """Places of the configurations that may be the fastest of those that can run.

        They are no further below the best than so many standard deviations.
        """
        places = np.flatnonzero(may_run)
        reach = num_sds * np.sqrt(self.variance[places])
        least = (self.mean[places] - reach)[np.argmax(self.mean[places])] if len(places) else 0.0
        return np.asarray(places[self.mean[places] + reach >= least])

    def draws(self, places: Integers, number: int, seed: int) -> Array:
        """Possible log rates of the configurations at M places, [number, M]."""
        values, vectors = np.linalg.eigh(self.covariance[np.ix_(places, places)])
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        normal = np.random.default_rng(seed).standard_normal((number, len(places)))
        return np.asarray(self.mean[places] + normal @ root.T)


def fit_hyperparameters(
    kernel: Kernel, prior_mean: Array, observations: Sequence[Observation], first: Hyperparameters
) -> Hyperparameters:
    """The most probable hyperparameters, given what they were taken for at first.

    Args:
        kernel: Of the space's configurations.
        prior_mean: What the bottleneck model says, [N].
        observations: What was seen.
        first: What was expected of them.
    """
    seen = _Columns.of(observations)
    names = [field.name for field in dataclasses.fields(Hyperparameters)]
    first_logs = np.log([getattr(first, name) for name in names])
    sds = np.array([_LOG_SDS.get(name, _LOG_SD) for name in names])
    seen_alone = kernel.at(seen.index)
    residuals = seen.log_rate - prior_mean[seen.index]

    def improbability(logs: Array) -> float:
        hyperparameters = Hyperparameters(**dict(zip(names, np.exp(logs).tolist(), strict=True)))
        factor = _factor(seen_alone, hyperparameters, seen)
        explained = residuals @ cho_solve((factor, True), residuals)
        improbable = (((logs - first_logs) / sds) ** 2).sum()
        return float(explained / 2 + np.log(np.diag(factor)).sum() + improbable / 2)

    # Far from what is expected, a step of the minimiser would leave what can be reckoned with.
    bounds = list(zip(first_logs - _REACH * sds, first_logs + _REACH * sds, strict=True))
    found = minimize(
        improbability, first_logs, method="L-BFGS-B", bounds=bounds, options={"maxiter": 15}
    )
    return Hyperparameters(**dict(zip(names, np.exp(found.x).tolist(), strict=True)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    index: Integers
    at_s: Array
    log_rate: Array
    duration_s: Array
    error: Array

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> _Columns:
        def column(name: str) -> Array:
            return np.array([getattr(found, name) for found in observations], dtype=float)

        return cls(
            index=column("index").astype(np.intp),
            at_s=column("at_s"),
            log_rate=column("log_rate"),
            duration_s=column("duration_s"),
            error=column("error"),
        )


def _drift(hyperparameters: Hyperparameters, seen: _Columns, others_s: Array) -> Array:
    """The covariance that measurements have by their times, and by their machines."""
    apart_s = np.abs(seen.at_s[:, None] - others_s)
    drift = hyperparameters.drift**2 * np.exp(-apart_s / DRIFT_S)
    return np.asarray(drift + np.where(apart_s < SAME_MACHINE_S, _level_sd(seen) ** 2, 0.0))


def _level_sd(seen: _Columns) -> float:
    """By how much machines may differ; nothing where there is only one."""
    return _MACHINES_SD if np.ptp(seen.at_s) > SAME_MACHINE_S else 0.0


def _factor(kernel: Kernel, hyperparameters: Hyperparameters, seen: _Columns) -> Array:
    """The Cholesky factor of the covariance of what was seen; `kernel` is of that alone."""
    covariance = kernel.covariance(hyperparameters) + _drift(hyperparameters, seen, seen.at_s)
    noise = _noise(hyperparameters, kernel.has_workers, seen.duration_s) + seen.error**2
    return np.asarray(cholesky(covariance + np.diag(noise), lower=True))


def _noise(
    hyperparameters: Hyperparameters, has_workers: NDArray[np.bool_], duration_s: Array
) -> Array:
    noise = np.where(has_workers, hyperparameters.workers_noise, hyperparameters.noise)
    return np.asarray(hyperparameters.process**2 + noise**2 / duration_s + _JITTER)


def _coordinates(configs: Sequence[ThroughputConfig], *, needs_workers: bool) -> list[Array]:
    """Where configurations stand along the axes, in units of which 1 is far, [N] each.

    Whether there are workers at all is told apart from their number.
    """
    found: list[Array] = []
    for name, axis in AXES.items():
        if axis.needs_workers is needs_workers:
            values = [getattr(config, name) for config in configs]
            if axis.kind is Kind.COUNT:
                found.append(_logs([max(1, value or 1) for value in values], axis.length))
            elif axis.kind is Kind.FLAG:
                found.append(np.array([float(value) for value in values]) / axis.length)
            else:
                found.extend(_categories(values, axis.length))
    return found


def _words_in_common(configs: Sequence[ThroughputConfig]) -> Array:
    """For all pairs, of the words of the step that are not the same for all, [N, N]."""
    found = []
    for name, axis in AXES.items():
        if axis.splits_costs:
            values = np.array([getattr(config, name) for config in configs])
            same = values[:, None] == values
            if not same.all():
                found.append(same.astype(float))
    count = len(configs)
    return np.asarray(sum(found) / len(found)) if found else np.zeros((count, count))


def _logs(values: Sequence[int], length: float) -> Array:
    return np.asarray(np.log2(np.array(values, dtype=float)) / length)


def _categories(values: Sequence[str], length: float) -> list[Array]:
    """Coordinates that put any two different values as far apart as numbers that differ by 1."""
    named = np.array(values)
    return [(named == value) / (math.sqrt(2) * length) for value in sorted(set(values))]


def _alike(coordinates: Sequence[Array]) -> Array:
    """Squared exponential of the distance, for all pairs."""
    squares = [(values[:, None] - values) ** 2 for values in coordinates]
    return np.asarray(np.exp(-functools.reduce(np.add, squares) / 2))
