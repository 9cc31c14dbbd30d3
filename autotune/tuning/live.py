"""Live trials for the adaptive search."""

from __future__ import annotations

from autotune.analysis.short_trials import read
from autotune.config import ThroughputConfig
from autotune.measurement import Failure
from autotune.optimizer.adaptive import Reading
from autotune.study.records import Phase
from autotune.system.clock import unix_s
from autotune.tuning.executor import Executor


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

    @property
    def now_s(self) -> float:
        """See `clock.unix_s`."""
        return unix_s()

    def run(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """One trial; disturbed blocks are measured again, within a bound."""
        self.num_trials += 1
        record = self._executor.run_short(config, Phase.SEARCH, num_blocks=num_blocks)
        return record.failure or read(record)
