"""How sure the figures of single trials are, from the spread of blocks all over a study.

A trial has few blocks, and the spread of a few says little. So the spread of all trials is pooled,
and each trial's own counts beside it for what its blocks are worth.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from scipy.special import fdtri, stdtrit

from autotune.measurement import counted_blocks
from autotune.search.study import TrialRecord

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
        variance: Pooled over all trials with at least two blocks; None where there are none.
        freedom: Its degrees of freedom.
        autocorrelation: Of neighbouring blocks, pooled; never below 0.
    """

    variance: float | None
    freedom: int
    autocorrelation: float

    @classmethod
    def of(cls, records: Iterable[TrialRecord]) -> BlockSpread:
        """The spread that a study's trials show.

        Source: Marriott & Pope 1954, "Bias in the Estimation of Autocorrelations".
        """
        squares = products = 0.0
        num_trials = num_blocks = 0
        for record in records:
            residuals = _residuals(record)
            if len(residuals) < 2:
                continue
            squares += sum(value**2 for value in residuals)
            products += sum(a * b for a, b in itertools.pairwise(residuals))
            num_trials += 1
            num_blocks += len(residuals)
        freedom = num_blocks - num_trials
        # Residuals from a mean of few values are correlated by -1 / their number.
        correlation = products / squares + num_trials / num_blocks if squares else 0.0
        return cls(
            variance=squares / freedom if freedom else None,
            freedom=freedom,
            autocorrelation=min(max(correlation, 0.0), _LARGEST_AUTOCORRELATION),
        )

    def relative_error(self, record: TrialRecord) -> float | None:
        """Half the width of the 95 % interval of a trial's throughput, as a share of it.

        None where there is no measurement, or nothing to tell the spread from.

        Source: batch means with the inflation for lag-1 autocorrelation, √((1 + r) / (1 - r)); and
        moderated variances (Smyth 2004, "Linear Models and Empirical Bayes Methods").
        """
        if self.variance is None or record.measurement is None:
            return None
        residuals = _residuals(record)
        own_freedom = len(residuals) - 1
        squares = sum(value**2 for value in residuals)
        freedom = _POOLED_FREEDOM + own_freedom
        variance = (_POOLED_FREEDOM * self.variance + squares) / freedom
        inflation = (1 + self.autocorrelation) / (1 - self.autocorrelation)
        quantile = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))
        return quantile * math.sqrt(variance * inflation / len(residuals))

    def is_unsteady(self, record: TrialRecord) -> bool:
        """Whether a trial did not settle, or its blocks spread far more than those of others."""
        if record.measurement is None:
            return False
        residuals = _residuals(record)
        own_freedom = len(residuals) - 1
        if not record.measurement.settled:
            return True
        if own_freedom < 1 or self.variance is None or self.freedom <= own_freedom:
            return False
        squares = sum(value**2 for value in residuals)
        others_freedom = self.freedom - own_freedom
        others = (self.variance * self.freedom - squares) / others_freedom
        limit = float(fdtri(own_freedom, others_freedom, _UNSTEADY_CONFIDENCE))
        own = squares / own_freedom
        return own > limit * others and own > _UNSTEADY_SD**2


def _residuals(record: TrialRecord) -> Sequence[float]:
    """Log rates of a trial's blocks, less their mean."""
    logs = [math.log(block.units_per_s) for block in counted_blocks(record.samples)]
    return [value - sum(logs) / len(logs) for value in logs]
