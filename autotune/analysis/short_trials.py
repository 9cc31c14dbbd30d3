"""The stored trials of a study, as the optimizer is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autotune.measurement import StartMode, counted_blocks, sustained_error, sustained_share
from autotune.optimizer.adaptive import Reading, ShortTrial
from autotune.study.records import TrialRecord, telling_failures


def read(record: TrialRecord) -> Reading:
    """What a trial with a measurement showed; epochs' ends are charged as often as epochs end."""
    measurement, samples = record.measurement, record.samples
    assert measurement is not None
    blocks = counted_blocks(samples)
    num_steps = sum(block.num_steps for block in blocks)
    num_units = sum(block.num_units for block in blocks) * sustained_share(blocks)
    duration_s = num_units / measurement.units_per_s
    at_s = sum(sample.at_s for sample in samples if sample.blocks)
    start_s = None
    if record.phase.is_brief and record.duration_s is not None:
        all_s = sum(block.duration_s for sample in samples for block in sample.blocks)
        start_s = max(0.0, record.duration_s - all_s)
    epoch_ends_s = duration_s - measurement.measured_s
    return Reading(
        at_s=at_s / sum(bool(sample.blocks) for sample in samples) + measurement.measured_s / 2,
        duration_s=duration_s,
        num_units=num_units,
        num_steps=num_steps,
        wait_s=max(0.0, sum(block.wait_s for block in blocks) + epoch_ends_s),
        lost_s=max(0.0, sum(block.lost_s for block in blocks) + epoch_ends_s),
        wait_cpu_s=sum(block.wait_cpu_s for block in blocks),
        start_s=start_s,
        started_at_once=record.start_mode is StartMode.SWAP,
        error=sustained_error(blocks, record.config.num_workers),
        device_share=measurement.gpu_utilisation,
    )


def recall(records: Iterable[TrialRecord]) -> Iterator[ShortTrial]:
    """The stored trials of a study, as the search takes them into account.

    Those that run tell nothing, nor do those that failed by chance (see `telling_failures`).
    """
    records = tuple(records)
    telling = telling_failures(records)
    for record in records:
        if record.measurement is not None:
            yield ShortTrial(config=record.config, outcome=read(record))
        elif record.failure is not None and record.number in telling:
            yield ShortTrial(config=record.config, outcome=record.failure)
