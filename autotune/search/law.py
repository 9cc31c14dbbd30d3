"""What a loop's throughput should be with settings that have not run, from those that have.

A loop without workers waits for a batch and then computes: one trial tells both costs. What they
are for other batch sizes and threads follows from a law with few coefficients, none negative; what
workers bring follows from the bounds of a pipeline. The law is a first guess, to which
`belief.Belief` adds how far off it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autotune.config import ThroughputConfig

Array = NDArray[np.float64]
# Of a step, what is taken to be the same for any batch, and what to be done by all threads, until
# trials tell; and what that is worth beside one trial.
_FIXED_SHARE, _PARALLEL_SHARE, _PRIOR_WEIGHT = 0.2, 0.5, 0.1
# Where several bounds lie close to each other, all are felt: the higher, the sharper the corner.
_SHARPNESS = 8.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one trial without workers took, in seconds per unit.

    Attributes:
        config: What ran.
        step_s: The training step.
        load_s: Waiting for the batch.
        load_cpu_s: CPU seconds of that.
    """

    config: ThroughputConfig
    step_s: float
    load_s: float
    load_cpu_s: float


class BottleneckLaw:
    """Seconds per unit for any configuration.

    A step of B samples with T threads takes s0 + s1 B + s2 B/T + s3/T; loading takes l0 + l1 B.
    With W workers on C cores, a unit takes as long as the longest of: the step; its loading by W
    workers; and the CPU time of both, spread over all cores.

    Args:
        costs: Of trials without workers, at least one; the first is the baseline's, as a rule.
        usable_cores: Cores that the loop may use.
    """

    def __init__(self, costs: Sequence[Costs], usable_cores: float) -> None:
        self._cores = usable_cores
        first = costs[0]
        batch, threads = _sizes([first.config])
        # Shares of the first trial's step, as coefficients of `_terms`.
        shares = np.array(
            [
                _FIXED_SHARE,
                (1 - _FIXED_SHARE) * (1 - _PARALLEL_SHARE),
                (1 - _FIXED_SHARE) * _PARALLEL_SHARE,
                0.0,
            ]
        )
        prior = first.step_s * shares / _terms(batch, threads)[0]
        self._step = _fit([c.config for c in costs], [c.step_s for c in costs], prior)
        self._load = _fit([c.config for c in costs], [c.load_s for c in costs], None)
        total = sum(c.load_s for c in costs)
        self._load_cpu_share = min(1.0, sum(c.load_cpu_s for c in costs) / total) if total else 1.0

    def seconds_per_unit(self, configs: Iterable[ThroughputConfig]) -> Array:
        """For each configuration, shape [N]."""
        configs = tuple(configs)
        batch, threads = _sizes(configs)
        workers = np.array([config.num_workers for config in configs], dtype=float)
        step_s = _terms(batch, threads) @ self._step
        load_s = _terms(batch, threads)[:, :2] @ self._load
        bounds = np.stack(
            [
                step_s,
                load_s / np.maximum(workers, 1.0),
                # Threads that wait for each other spin: a step takes the time of them all.
                (np.minimum(threads, self._cores) * step_s + self._load_cpu_share * load_s)
                / self._cores,
            ]
        )
        with_workers = (bounds**_SHARPNESS).sum(axis=0) ** (1 / _SHARPNESS)
        return np.where(workers > 0, with_workers, step_s + load_s)

    def gain(self, configs: Iterable[ThroughputConfig]) -> Array:
        """What loading that takes no time would bring, as a logarithm of rates, [N]."""
        batch, threads = _sizes(tuple(configs))
        step_s = _terms(batch, threads) @ self._step
        load_s = _terms(batch, threads)[:, :2] @ self._load
        return np.asarray(np.log1p(load_s / step_s))


def _sizes(configs: Sequence[ThroughputConfig]) -> tuple[Array, Array]:
    batch = np.array([config.batch_size for config in configs], dtype=float)
    threads = np.array([config.num_threads or 1 for config in configs], dtype=float)
    return batch, threads


def _terms(batch: Array, threads: Array) -> Array:
    """What the coefficients of a cost per unit are multiplied with, [N, 4]."""
    return np.stack([1 / batch, np.ones_like(batch), 1 / threads, 1 / (batch * threads)], axis=1)


def _fit(
    configs: Sequence[ThroughputConfig], seconds: Sequence[float], prior: Array | None
) -> Array:
    """Coefficients that are least wrong relative to the seconds, none of them negative."""
    terms = _terms(*_sizes(configs))
    if prior is None:
        terms = terms[:, :2]
    scale = np.maximum(np.array(seconds), 1e-12)
    rows, wanted = terms / scale[:, None], np.ones(len(scale))
    # Coefficients that nothing tells stay at the prior, or else are shared evenly.
    guess = prior if prior is not None else np.full(2, 0.5) * scale[0] / terms[0]
    at_least = np.maximum(guess, 1e-3 * scale[0] / terms[0])
    rows = np.vstack([rows, _PRIOR_WEIGHT * np.diag(1 / at_least)])
    wanted = np.concatenate([wanted, _PRIOR_WEIGHT * guess / at_least])
    found, _ = nnls(rows, wanted)
    return np.asarray(found)
