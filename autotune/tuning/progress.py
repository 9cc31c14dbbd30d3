"""What a run tells of itself while it goes on."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from autotune.config import ThroughputConfig
from autotune.study.records import Phase


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, for display.

    Attributes:
        num_configurations: Configurations in the space.
        num_measured: Of these, measured (failed ones included).
        num_pruned: Of these, pruned: not worth a trial.
        baseline: Units per second of the baseline.
        best: Units per second of the fastest so far.
        best_error: Half of its 95 % interval, as a share of it; None where it is not known.
        best_config: The fastest so far.
        probability: That it is within 2 % of the best of the space; None where it is not known.
        left_s: Seconds that the run may still take.
        phase: What is going on.
        unit: What is counted.
    """

    num_configurations: int
    num_measured: int
    num_pruned: int
    baseline: float
    best: float
    best_error: float | None
    best_config: ThroughputConfig
    probability: float | None
    left_s: float
    phase: Phase
    unit: str


class Observer(Protocol):
    """Is told what happens, between measurements only."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def update(self, progress: Progress) -> None:
        """A trial has ended."""
