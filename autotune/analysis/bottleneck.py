"""What holds a configuration back: its data, its computing, or the overhead of its steps."""

from __future__ import annotations

import dataclasses
import enum
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from autotune.config import ThroughputConfig
from autotune.measurement import Measurement, figure
from autotune.study.records import TrialRecord

# One half of the loop is the bottleneck when it takes longer than the other by this factor.
_CLEARLY = 1.25
# A step is overhead-bound when at least this share of it does not depend on the batch size.
_OVERHEAD_SHARE = 0.5
# Cores that are busy for this share of the time have nothing left to give.
_SATURATED = 0.9


class Bound(enum.StrEnum):
    """What a loop's speed depends on. The values are stored in studies: never rename one."""

    DATA = "data-bound"
    COMPUTE = "compute-bound"
    OVERHEAD = "overhead-bound"
    BALANCED = "balanced"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What holds one configuration back, and what can be won where it is removed.

    Attributes:
        bound: The half of the loop that takes longer, or what makes it long.
        unit: What is counted.
        units_per_s: The loop as it runs.
        compute_units_per_s: Its step alone, fed the same batches again and again.
        load_units_per_s: Its loader alone.
        overhead_share: Share of a step that does not depend on the batch size; None where trials
            of one batch size only were seen.
        is_saturated: Whether the cores are busy nearly all the time.
    """

    bound: Bound
    unit: str
    units_per_s: float
    compute_units_per_s: float
    load_units_per_s: float
    overhead_share: float | None
    is_saturated: bool

    @property
    def ceiling(self) -> float:
        """How many times faster the loop could be if loading took no time and no core."""
        return max(1.0, self.compute_units_per_s / self.units_per_s)

    def __str__(self) -> str:
        parts = [
            f"{self.bound.value}: the step alone reaches {figure(self.compute_units_per_s)}, the "
            f"loader alone {figure(self.load_units_per_s)}, both together "
            f"{figure(self.units_per_s)} {self.unit}/s; with zero-cost data loading: up to "
            f"{self.ceiling:.2f}x"
        ]
        if self.overhead_share is not None:
            parts.append(
                f"{100 * self.overhead_share:.0f} % of a step is fixed overhead, independent of "
                "the batch size"
            )
        if self.is_saturated:
            parts.append("the cores are busy throughout")
        return "; ".join(parts)


def diagnose(
    config: ThroughputConfig,
    runs: Sequence[TrialRecord],
    searched: Iterable[TrialRecord],
) -> Bottleneck | None:
    """The bottleneck of a configuration; None where its step and loader were not probed.

    Args:
        config: The configuration.
        runs: Its confirming runs.
        searched: Trials that tell how a step's time depends on its batch size.
    """
    probed = [
        run.measurement
        for run in runs
        if run.measurement is not None and run.measurement.compute_units_per_s is not None
    ]
    if not probed:
        return None

    def mean(name: str) -> float:
        return statistics.geometric_mean(getattr(found, name) for found in probed)

    # Neither half can be slower by itself than with the other: where a probe of a quarter of a
    # second says so, the whole loop was measured for longer.
    together = mean("units_per_s")
    compute = max(mean("compute_units_per_s"), together)
    load = max(mean("load_units_per_s"), together)
    overhead_share = _overhead_share(config, searched)
    if compute > _CLEARLY * load:
        bound = Bound.DATA
    elif load <= _CLEARLY * compute:
        bound = Bound.BALANCED
    elif overhead_share is not None and overhead_share >= _OVERHEAD_SHARE:
        bound = Bound.OVERHEAD
    else:
        bound = Bound.COMPUTE
    return Bottleneck(
        bound=bound,
        unit=runs[0].unit or "samples",
        units_per_s=together,
        compute_units_per_s=compute,
        load_units_per_s=load,
        overhead_share=overhead_share,
        is_saturated=statistics.mean(found.cpu_utilisation for found in probed) >= _SATURATED,
    )


def _overhead_share(config: ThroughputConfig, searched: Iterable[TrialRecord]) -> float | None:
    """Share of a step's computing that does not depend on the batch size.

    From a line through the computing times of trials without workers that differ in batch size
    only, weighted so that each counts for its relative error.
    """
    points = [
        (record.config.batch_size, _compute_s(record.measurement))
        for record in searched
        if record.measurement is not None
        and record.config.num_workers == 0
        and record.config.num_threads == config.num_threads
    ]
    if len({size for size, _ in points}) < 2:
        return None
    sizes, seconds = np.array(points, dtype=float).T
    slope, intercept = np.polyfit(sizes, seconds, 1, w=1 / seconds)
    fixed_s, per_sample_s = max(0.0, float(intercept)), max(0.0, float(slope))
    whole_s = fixed_s + per_sample_s * config.batch_size
    return fixed_s / whole_s if whole_s else None


def _compute_s(found: Measurement) -> float:
    return max(found.seconds_per_step * (1 - found.data_wait_share), 1e-9)
