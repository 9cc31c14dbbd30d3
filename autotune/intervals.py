"""Figures with their intervals."""

from __future__ import annotations

import dataclasses
import math
from typing import Self

# Two configurations within this of each other are equally fast, and a gain below it is none.
INDIFFERENCE = 0.02
# The 97.5 % quantile of the normal distribution: half of a 95 % interval, in standard deviations.
TWO_SIDED_95 = 1.96


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio of throughputs with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of_log(cls, log_ratio: float, sd: float) -> Self:
        """From the expected logarithm of the ratio, and its standard deviation."""
        half_width = TWO_SIDED_95 * sd
        return cls(
            ratio=math.exp(log_ratio),
            low=math.exp(log_ratio - half_width),
            high=math.exp(log_ratio + half_width),
        )

    @property
    def significant(self) -> bool:
        """Whether it is surely a gain, and one worth having."""
        return self.low > 1.0 and self.ratio > 1.0 + INDIFFERENCE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A rate, and the bounds in which one more run falls with 95 % probability."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSpread:
    """How much runs of one configuration differ: standard deviations of the log of their rates.

    Attributes:
        own: By what is peculiar to each run.
        own_freedom: How sure that is, as degrees of freedom.
        drift: By what the machine does at the time.
        drift_freedom: How sure that is.
    """

    own: float
    own_freedom: float
    drift: float
    drift_freedom: float
