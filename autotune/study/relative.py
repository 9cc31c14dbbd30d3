"""Trials of other machines, as they would have been on this one.

Machines of one kind are not equally fast. Each measures the baseline, and what it measures besides
is taken relative to that. Nor do they become faster and slower at the same time: what one measured
tells nothing of how fast another was in that minute.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from autotune.blocks import Block, RankUse, Sample
from autotune.measurement import Measurement
from autotune.study.records import Phase, TrialRecord

# What is longer on a slower machine, and what is less.
_BLOCK_TIMES = (
    *("duration_s", "wait_s", "stall_s", "epoch_end_s", "cpu_s", "own_cpu_s"),
    *("wait_cpu_s", "other_cpu_s", "stolen_s", "throttled_s", "pressure_s"),
)
_TIMES = (
    *("seconds_per_step", "seconds_per_optimizer_step", "measured_s", "warm_up_s"),
    *("epoch_end_s", "copy_s", "cpu_s_per_sample"),
)
# Times of different machines are put so far apart that nobody takes their drift for the same one.
_APART_S = 1e9
_RATES = ("samples_per_s", "units_per_s", "compute_units_per_s", "load_units_per_s")


def as_here(records: Sequence[TrialRecord], host: str) -> tuple[TrialRecord, ...]:
    """The records with the figures of other machines in proportion to the baselines.

    Those of a machine without a baseline stay as they are.

    Args:
        records: Of a study, from any machine.
        host: Name of this machine.
    """
    baselines: dict[str | None, list[float]] = {}
    for record in records:
        if record.phase is Phase.BASELINE and record.measurement is not None:
            baselines.setdefault(record.host, []).append(record.measurement.units_per_s)
    others = [name for name in dict.fromkeys(r.host for r in records) if name != host]
    if host not in baselines or not others:
        return tuple(records)
    here = statistics.median(baselines[host])
    views = {
        name: (
            here / statistics.median(baselines[name]) if name in baselines else 1.0,
            place * _APART_S,
        )
        for place, name in enumerate(others, start=1)
    }
    return tuple(
        _seen_from_here(record, *views[record.host]) if record.host in views else record
        for record in records
    )


def _seen_from_here(record: TrialRecord, factor: float, earlier_s: float) -> TrialRecord:
    """The record with `factor` times the throughput, and as if it had been so much earlier."""
    if record.measurement is None:
        return record
    return dataclasses.replace(
        record,
        measurement=_scaled_measurement(record.measurement, factor),
        duration_s=_times(record.duration_s, 1 / factor),
        start_up_s=_times(record.start_up_s, 1 / factor),
        samples=tuple(_scaled_sample(sample, factor, earlier_s) for sample in record.samples),
    )


def _scaled_measurement(measurement: Measurement, factor: float) -> Measurement:
    changed = {name: _times(getattr(measurement, name), factor) for name in _RATES}
    changed |= {name: _times(getattr(measurement, name), 1 / factor) for name in _TIMES}
    return dataclasses.replace(measurement, **changed)  # type: ignore[arg-type]


def _scaled_sample(sample: Sample, factor: float, earlier_s: float) -> Sample:
    return dataclasses.replace(
        sample,
        at_s=sample.at_s - earlier_s,
        blocks=tuple(_scaled_block(block, factor) for block in sample.blocks),
    )


def _scaled_block(block: Block, factor: float) -> Block:
    changed = {name: _times(getattr(block, name), 1 / factor) for name in _BLOCK_TIMES}
    return dataclasses.replace(
        block,
        **changed,  # type: ignore[arg-type]
        # As many in a second.
        num_page_faults=round(block.num_page_faults / factor),
        ranks=tuple(_scaled_rank(use, factor) for use in block.ranks),
    )


def _scaled_rank(use: RankUse, factor: float) -> RankUse:
    return dataclasses.replace(
        use,
        duration_s=use.duration_s / factor,
        wait_s=use.wait_s / factor,
        cpu_s=use.cpu_s / factor,
    )


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
