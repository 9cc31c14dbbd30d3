"""What the trials so far say of configurations that have not run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType

from autotune.analysis.lessons import Lesson, learn
from autotune.config import ThroughputConfig
from autotune.intervals import INDIFFERENCE
from autotune.measurement import FailureCause
from autotune.memory_order import needs_as_much
from autotune.space import preference
from autotune.study.records import TrialRecord, telling_failures

# A bound comes from one short trial, and the incumbent from the luckiest one: two passes over the
# same configurations differed by more than 10 % for a fifth of them.
_BOUND_SLACK = 1.1
# A configuration that reached less than this share of the fastest one's rate in the search is not
# confirmed: short trials are seldom that wrong.
_CANDIDATE_SHARE = 0.85


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """The short trials of a study, as a view on the whole space.

    Attributes:
        measured: Units per second of the configurations tried; 0 for those that failed.
        without_workers: Of tried ones without workers, what they could reach if loading took no
            time at all; not of those that were disturbed throughout.
        exhausted: Configurations that ran out of memory, or of files, and why.
        in_doubt: Configurations that were tried once, and disturbed throughout.
        lessons: What failures teach.
    """

    measured: Mapping[ThroughputConfig, float]
    without_workers: Mapping[ThroughputConfig, float]
    exhausted: tuple[tuple[ThroughputConfig, FailureCause], ...]
    in_doubt: tuple[ThroughputConfig, ...]
    lessons: tuple[Lesson, ...] = ()

    @classmethod
    def of(cls, records: Iterable[TrialRecord]) -> Knowledge:
        """What short trials of the search, forked or fresh, have shown."""
        measured: dict[ThroughputConfig, float] = {}
        without_workers: dict[ThroughputConfig, float] = {}
        exhausted: list[tuple[ThroughputConfig, FailureCause]] = []
        tried: list[ThroughputConfig] = []
        disturbed: list[ThroughputConfig] = []
        records = tuple(records)
        telling = telling_failures(records)
        for record in records:
            failure, measurement = record.failure, record.measurement
            if not record.phase.is_brief:
                continue
            if measurement is not None:
                tried.append(record.config)
                measured[record.config] = measurement.units_per_s
                if measurement.num_disturbed == measurement.num_blocks:
                    disturbed.append(record.config)
                elif record.config.num_workers == 0:
                    step_share = max(1.0 - measurement.data_wait_share, 1e-6)
                    without_workers[record.config] = measurement.units_per_s / step_share
            elif failure is not None and record.number in telling:
                measured[record.config] = 0.0
                without_workers.pop(record.config, None)
                if failure.cause.is_exhaustion:
                    exhausted.append((record.config, failure.cause))
        return cls(
            measured=MappingProxyType(measured),
            without_workers=MappingProxyType(without_workers),
            exhausted=tuple(exhausted),
            in_doubt=tuple(config for config in disturbed if tried.count(config) == 1),
            lessons=learn(records),
        )

    @property
    def incumbent(self) -> float:
        """Units per second of the fastest configuration tried; 0 before there is one."""
        return max(self.measured.values(), default=0.0)

    def bound(self, config: ThroughputConfig) -> float:
        """Units per second that `config` cannot exceed, as far as is known.

        Without workers the loop waits for loading and then computes. Workers can hide the waiting
        and nothing else: rate ≤ 1 / compute time.
        """
        return self.without_workers.get(config.without_workers(), math.inf)

    def rules_out(self, config: ThroughputConfig) -> bool:
        """Whether `config` needs no trial.

        It cannot beat the best by enough to matter, or needs more than one that ran out of it, or
        fails by what others taught.
        """
        if any(lesson.covers(config) for lesson in self.lessons):
            return True
        if any(needs_as_much(config, failed, cause) for failed, cause in self.exhausted):
            return True
        if config.num_workers == 0:
            return False
        bound = self.bound(config)
        if bound == math.inf:
            return False
        # Both from one trial, so that what disturbed it cancels.
        gain = bound / self.measured[config.without_workers()]
        return gain < 1 + INDIFFERENCE or bound * _BOUND_SLACK < self.incumbent

    def candidates(
        self, baseline: ThroughputConfig, excluded: Set[ThroughputConfig], number: int
    ) -> tuple[ThroughputConfig, ...]:
        """The fastest configurations beside those excluded, the preferred one first among equals.

        Those far behind the fastest are left out.
        """
        others = {
            config: rate
            for config, rate in self.measured.items()
            if rate and config not in excluded
        }
        top = max(others.values(), default=0.0)
        close = [config for config, rate in others.items() if rate >= _CANDIDATE_SHARE * top]
        close.sort(key=lambda config: (-others[config], preference(config, baseline)))
        return tuple(close[:number])
