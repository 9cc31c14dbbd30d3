"""The learning rate as a function of the optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mm_rec.errors import ConfigError

FINAL_SHARE = 0.1
DEFAULT_WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine down to a tenth of the peak.

    A function of the step and of nothing else, so that resuming needs the step alone.

    Attributes:
        peak_lr: Learning rate at the end of the warm-up.
        warmup_steps: Optimizer steps of linear growth.
        total_steps: Optimizer steps of the whole run; the rate stays at its final value beyond.

    Raises:
        ConfigError: The peak is not positive or a number of steps is negative.
    """

    peak_lr: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.peak_lr) and self.peak_lr > 0.0):
            raise ConfigError(f"lr must be a positive number, got {self.peak_lr}")
        if self.warmup_steps < 0 or self.total_steps < 0:
            raise ConfigError(
                f"warmup_steps and total_steps must not be negative, got {self.warmup_steps} "
                f"and {self.total_steps}"
            )

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the optimizer step number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        decay_steps = max(1, self.total_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / decay_steps)
        share = FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * done))
        return self.peak_lr * share


def default_warmup_steps(total_steps: int) -> int:
    """Return a tenth of the run, at most `DEFAULT_WARMUP_STEPS`."""
    return min(DEFAULT_WARMUP_STEPS, total_steps // 10)
