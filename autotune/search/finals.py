"""The confirmation: which configurations run again in fresh processes, and for how many rounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import psutil

from autotune.config import ThroughputConfig
from autotune.search.definition import StudyDefinition
from autotune.search.knowledge import Knowledge
from autotune.search.recorder import Recorder
from autotune.search.study import StudyStore, TrialRecord

# Of the free memory, what finalists that are open at once may take.
_MEMORY_SHARE = 0.7
# Of the budget, what is kept for the confirmation at most.
_LARGEST_SHARE = 0.5


def confirmation_s(definition: StudyDefinition, baseline: TrialRecord) -> float:
    """Time kept for the confirmation: what it takes, but never most of the budget."""
    num_runs = (definition.num_finalists + 1) * definition.confirm_rounds
    return min(num_runs * _run_s(baseline), _LARGEST_SHARE * definition.budget_s)


class Finals:
    """Chooses the finalists, and runs them and the baseline in rounds."""

    def __init__(self, definition: StudyDefinition, recorder: Recorder, store: StudyStore) -> None:
        self._definition = definition
        self._recorder = recorder
        self._store = store

    def choose(
        self, knowledge: Knowledge, baseline: ThroughputConfig, record: TrialRecord
    ) -> tuple[ThroughputConfig, ...]:
        """As many finalists as are asked for, or as fit in the time that is left; at least one.

        Args:
            knowledge: What the search has found.
            baseline: The baseline.
            record: Its trial, which tells what a run takes.
        """
        num_runs = self._recorder.left_s / (self._definition.confirm_rounds * _run_s(record))
        number = max(1, min(self._definition.num_finalists, int(num_runs) - 1))
        return knowledge.finalists(baseline, number)

    def fit_together(self, configs: Sequence[ThroughputConfig]) -> bool:
        """Whether all of these may be in memory at once, by what their trials so far held.

        GPUs have no room to spare as a rule, and torch's allocator gives nothing back: not there.
        """
        needed: dict[ThroughputConfig, int] = {}
        for record in self._store.records():
            found = record.measurement
            if found is None or record.config not in configs:
                continue
            if found.device_memory_bytes is not None:
                return False
            held = found.peak_memory_bytes + found.shared_memory_bytes
            needed[record.config] = max(needed.get(record.config, 0), held)
        return sum(needed.values()) < _MEMORY_SHARE * psutil.virtual_memory().available

    def confirm(
        self,
        configs: Sequence[ThroughputConfig],
        *,
        side_by_side: bool,
        show: Callable[[], None],
    ) -> list[TrialRecord]:
        """Run all in fresh processes, round by round while there is time; at least one round.

        Args:
            configs: The baseline first; the others leave when they fail.
            side_by_side: Whether all are open at once.
            show: Called after each round.
        """
        shuffle = random.Random(self._definition.seed)
        baseline, *finalists = configs
        confirmed: list[TrialRecord] = []
        for number in range(1, self._definition.confirm_rounds + 1):
            left_s = self._recorder.left_s
            found = self._recorder.run_round(
                [baseline, *finalists], number=number, side_by_side=side_by_side, shuffle=shuffle
            )
            confirmed += found
            failed = {record.config for record in found if record.failure is not None}
            finalists = [config for config in finalists if config not in failed]
            show()
            round_s = left_s - self._recorder.left_s
            if self._recorder.left_s < round_s:
                break
        return confirmed


def _run_s(baseline: TrialRecord) -> float:
    """What a confirming run takes: as long as the baseline's, its start included."""
    assert baseline.duration_s is not None
    return baseline.duration_s
