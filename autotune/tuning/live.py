"""Live trials for the adaptive search."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from autotune.analysis.short_trials import read, recall
from autotune.config import ThroughputConfig
from autotune.measurement import Failure
from autotune.optimizer.adaptive import Reading, ShortTrial
from autotune.study.records import Phase, TrialRecord
from autotune.system.clock import unix_s
from autotune.tuning.executor import Executor
from autotune.tuning.search_loop import LOOK_EVERY_S


class LiveBench:
    """Trials of the study's command, which the study keeps. See `search_loop.Bench`.

    Attributes:
        num_trials: How many there were.

    Args:
        executor: Runs them.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.num_trials = 0
        # Numbers of the trials that the optimizer has been told of.
        self._known: set[int] = set()

    @property
    def now_s(self) -> float:
        """See `clock.unix_s`."""
        return unix_s()

    def knows(self, records: Iterable[TrialRecord]) -> None:
        """The optimizer has been told of these trials, as far as they have ended."""
        self._known = {record.number for record in records if record.has_ended}

    def news(self) -> Iterator[ShortTrial]:
        """The trials of other machines that have ended since."""
        if self._executor.store.is_shared:
            records = self._executor.store.trusted_records()
            new = [r for r in records if r.has_ended and r.number not in self._known]
            self._known.update(record.number for record in new)
            yield from recall(new)

    def pending(self) -> frozenset[ThroughputConfig]:
        """The configurations that other machines run now."""
        return self._executor.store.running_elsewhere()

    def wait(self) -> None:
        """See `search_loop.Others`."""
        time.sleep(LOOK_EVERY_S)

    def run(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """One trial; disturbed blocks are measured again, within a bound."""
        self.num_trials += 1
        record = self._executor.run_short(config, Phase.SEARCH, num_blocks=num_blocks)
        self._known.add(record.number)
        return record.failure or read(record)
