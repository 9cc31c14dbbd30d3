"""What a trial of the search takes: some steps, and what it takes beside these on average."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# First guesses: what starting a forked trial takes, in seconds; and settling, in steps.
_START_S, _SETTLE_STEPS = 0.4, 3.0


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
        found = [_START_S, *(start_s - _SETTLE_STEPS * step_s for start_s, step_s in starts)]
        return cls(beside_s=max(0.0, float(np.mean(found))))

    def start_s(self, step_s: Array) -> Array:
        """Until the first block, for trials whose steps take so long."""
        return self.beside_s + _SETTLE_STEPS * step_s

    def trial_s(self, step_s: float, num_blocks: int, block_s: float) -> float:
        """With so many blocks, each a step at least."""
        return float(self.start_s(np.asarray(step_s))) + num_blocks * max(block_s, step_s)
