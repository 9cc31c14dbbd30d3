"""What a trial of the search takes, and a round of the confirmation: steps, and what is beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# First guess: what starting a forked trial takes, in seconds.
_START_S = 0.4
# About the longest time for a loop to reach its steady state. A loop is known for a training by its
# first step; settling takes two more where there is time for no more, and three else (see
# `timed_loop`).
SETTLE_S = 1.0
# Where steps are known to take at least so long, one more is enough: what the first ones pay for
# beside is not much of them. Not the first alone: where the allocator keeps what is freed, the
# second has been seen to take a quarter longer than the third.
SLOW_S = 2.0
# A confirming run is measured in whole optimizer steps, unless these take longer. Of what does,
# updating the parameters is a hundredth or less.
LONGEST_UPDATE_S = 30.0
# Timing step and loader each by itself takes about so long; where steps are long it is done only
# if there is time for it.
_PROBES_S = 1.0


def settling_s(step_s: Array) -> Array:
    """Seconds of steps that are not counted, where a step takes so long."""
    num_steps = np.select([step_s >= SLOW_S, 2 * step_s > SETTLE_S], [2.0, 3.0], 4.0)
    return np.asarray(num_steps * step_s)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialCost:
    """Seconds that trials take which are started in one way.

    Attributes:
        beside_s: What starting one takes beside steps.
    """

    beside_s: float = _START_S

    @classmethod
    def learned(cls, starts: Iterable[tuple[float, float]]) -> Self:
        """From trials of which each took so many seconds until its first block.

        Args:
            starts: Of each trial, these seconds, and those of one of its steps.
        """
        beside = (start_s - float(settling_s(np.asarray(step_s))) for start_s, step_s in starts)
        return cls(beside_s=max(0.0, float(np.mean([_START_S, *beside]))))

    def start_s(self, step_s: Array) -> Array:
        """Until the first block, for trials whose steps take so long."""
        return self.beside_s + settling_s(step_s)

    def trial_s(self, step_s: float, num_blocks: int, block_s: float) -> float:
        """With so many blocks, each a step at least."""
        return float(self.start_s(np.asarray(step_s))) + num_blocks * max(block_s, step_s)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmingCost:
    """Seconds that a run of the confirmation takes, in a fresh process.

    Attributes:
        start_s: Until its first step.
        measured_s: How long it is measured; as a rule, an optimizer step at least.
    """

    start_s: float
    measured_s: float

    def run_s(self, step_s: Array, num_accumulated: Array) -> Array:
        """Of configurations with such steps, so many of which make an optimizer step."""
        update_s = np.minimum(step_s * num_accumulated, np.maximum(step_s, LONGEST_UPDATE_S))
        measured_s = np.maximum(self.measured_s, update_s)
        # A loop is known for a training by its first optimizer step, or else after as long.
        known_s = update_s - np.minimum(step_s, update_s)
        probes_s = np.where(step_s <= _PROBES_S, _PROBES_S, 0.0)
        return np.asarray(self.start_s + known_s + settling_s(step_s) + measured_s + probes_s)
