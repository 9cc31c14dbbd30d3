"""How sure the figures of single trials are, from the spread of blocks all over a study.

A trial has few blocks, and the spread of a few says little. So the spread of all trials is pooled,
and each trial's own counts beside it for what its blocks are worth.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import fdtri, stdtrit

from autotune.measurement import counted_blocks
from autotune.study.records import TrialRecord

# The pooled spread weighs as much as so many blocks of the trial's own.
_POOLED_FREEDOM = 4
_CONFIDENCE = 0.95
# A loop is called unsteady when its blocks spread more than those of others in all but one of a
# thousand cases, and by more than this at all.
_UNSTEADY_CONFIDENCE, _UNSTEADY_SD = 0.999, 0.05
_LARGEST_AUTOCORRELATION = 0.9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpread:
    """The spread of block rates around their trial's mean, on the log scale, over a study.

    Attributes:
        variance: Of a block, pooled over all trials with at least two; None where there are none.
        residual_variance: The same as it shows within trials, whose blocks share what makes them
            alike; equal to `variance` where they are independent.
        freedom: Degrees of freedom of both.
        autocorrelation: Of neighbouring blocks, pooled; never below 0.
    """

    variance: float | None
    residual_variance: float | None
    freedom: int
    autocorrelation: float

    @classmethod
    def of(cls, records: Iterable[TrialRecord]) -> BlockSpread:
        """The spread that a study's trials show.

        Blocks are taken for a first-order autoregression. Residuals from a mean of few values
        understate both its variance and its autocorrelation, by as much as can be reckoned: the
        autocorrelation is the one that would show as the residuals do.
        """
        groups = [group for record in records if len(group := _residuals(record)) > 1]
        squares = sum(value**2 for group in groups for value in group)
        products = sum(a * b for group in groups for a, b in itertools.pairwise(group))
        freedom = sum(len(group) - 1 for group in groups)
        if not squares:
            none = 0.0 if groups else None
            return cls(variance=none, residual_variance=none, freedom=freedom, autocorrelation=0.0)
        lengths = collections.Counter(len(group) for group in groups)

        def excess(correlation: float) -> float:
            """How much more alike neighbours would look than they do."""
            expected = [(n, _expected(count, correlation)) for count, n in lengths.items()]
            return sum(n * found.products for n, found in expected) - products / squares * sum(
                n * found.squares for n, found in expected
            )

        if excess(0.0) >= 0:
            correlation = 0.0
        elif excess(_LARGEST_AUTOCORRELATION) <= 0:
            correlation = _LARGEST_AUTOCORRELATION
        else:
            correlation = round(float(brentq(excess, 0.0, _LARGEST_AUTOCORRELATION)), 3)
        return cls(
            variance=squares
            / sum(n * _expected(count, correlation).squares for count, n in lengths.items()),
            residual_variance=squares / freedom,
            freedom=freedom,
            autocorrelation=correlation,
        )

    def relative_error(self, record: TrialRecord) -> float | None:
        """Half the width of the 95 % interval of a trial's throughput, as a share of it.

        None where there is no measurement, or nothing to tell the spread from.

        Source: moderated variances (Smyth 2004, "Linear Models and Empirical Bayes Methods"), and
        the variance of the mean of a first-order autoregression.
        """
        if self.variance is None or record.measurement is None:
            return None
        residuals = _residuals(record)
        own_freedom = len(residuals) - 1
        expected = _expected(len(residuals), self.autocorrelation)
        own = sum(value**2 for value in residuals) / expected.squares if own_freedom else 0.0
        freedom = _POOLED_FREEDOM + own_freedom
        variance = (_POOLED_FREEDOM * self.variance + own_freedom * own) / freedom
        quantile = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))
        return quantile * math.sqrt(variance * expected.mean)

    def is_unsteady(self, record: TrialRecord) -> bool:
        """Whether a trial did not settle, or its blocks spread far more than those of others."""
        if record.measurement is None:
            return False
        if not record.measurement.settled:
            return True
        residuals = _residuals(record)
        own_freedom = len(residuals) - 1
        others_freedom = self.freedom - own_freedom
        if own_freedom < 1 or others_freedom < 1 or self.residual_variance is None:
            return False
        squares = sum(value**2 for value in residuals)
        others = (self.residual_variance * self.freedom - squares) / others_freedom
        limit = float(fdtri(own_freedom, others_freedom, _UNSTEADY_CONFIDENCE))
        own = squares / own_freedom
        return own > limit * others and own > _UNSTEADY_SD**2


class _Expected(NamedTuple):
    """Of consecutive values of a first-order autoregression with variance 1, what to expect."""

    squares: float  # Sum of squared residuals from their mean.
    products: float  # Sum of the products of neighbouring residuals.
    mean: float  # Variance of their mean.


@functools.lru_cache(maxsize=4096)
def _expected(count: int, correlation: float) -> _Expected:
    places = np.arange(count)
    covariance = correlation ** np.abs(places[:, None] - places)
    centre = np.eye(count) - 1 / count
    residual = centre @ covariance @ centre
    return _Expected(
        squares=float(np.trace(residual)),
        products=float(np.trace(residual, 1)),
        mean=float(covariance.mean()),
    )


def _residuals(record: TrialRecord) -> Sequence[float]:
    """Log rates of a trial's blocks, less their mean."""
    logs = [math.log(block.units_per_s) for block in counted_blocks(record.samples)]
    return [value - sum(logs) / len(logs) for value in logs]
