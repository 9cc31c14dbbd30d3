"""What the loader takes of the CPU, and what the garbage collector takes of that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from autotune.blocks import Block, Sample
from autotune.collector import COLLECTORS, DEFAULT
from autotune.config import ThroughputConfig
from autotune.measurement import counted_blocks
from autotune.study.records import TrialRecord


def loader_cpu_share(samples: Sequence[Sample], config: ThroughputConfig) -> float:
    """CPU seconds of loading in a second of the loop; more than 1 where several workers load.

    Args:
        samples: Of a trial.
        config: What ran.
    """
    blocks = counted_blocks(samples)
    return _loader_cpu_s(blocks, config) / sum(block.duration_s for block in blocks)


def collector_share(records: Iterable[TrialRecord], config: ThroughputConfig) -> float | None:
    """The share of the loader's CPU time that the garbage collector takes as it is, 0 to 1.

    Trials tell it that differ in the setting of the collector alone: what loading takes less with
    the best other one. None where there are not both.

    Args:
        records: Trials of a study.
        config: Whose other settings they have.
    """
    costs: dict[str, float] = {}
    records = tuple(records)
    for collector in COLLECTORS:
        same = dataclasses.replace(config, gc=collector)
        found = [record for record in records if record.config == same and record.measurement]
        blocks = [block for record in found for block in counted_blocks(record.samples)]
        if blocks:
            num_units = sum(block.num_units for block in blocks)
            costs[collector] = _loader_cpu_s(blocks, config) / num_units
    plain_s = costs.pop(DEFAULT, 0.0)
    if not plain_s or not costs:
        return None
    return max(0.0, 1.0 - min(costs.values()) / plain_s)


def _loader_cpu_s(blocks: Sequence[Block], config: ThroughputConfig) -> float:
    """Workers use what the training process does not; without them it loads while it waits."""
    if config.num_workers:
        return max(0.0, sum(block.cpu_s - block.own_cpu_s for block in blocks))
    return sum(block.wait_cpu_s for block in blocks)
