"""Real runs for the adaptive search."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from autotune.blocks import Sample
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, counted_blocks, sustained_share
from autotune.search.adaptive import Reading, Visit
from autotune.search.recorder import Recorder
from autotune.search.records import Phase, TrialRecord


class LiveBench:
    """Runs of the study's command, which keeps them. See `adaptive.Bench`.

    Args:
        recorder: Runs them.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @property
    def now_s(self) -> float:
        """Unix time."""
        return time.time()

    def visit(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """One run; disturbed blocks are measured again, within a bound."""
        record = self._recorder.visit(config, Phase.SEARCH, num_blocks=num_blocks)
        return record.failure or read_samples(record.samples)


def read_samples(samples: Sequence[Sample]) -> Reading:
    """What samples of one run showed together; at least one has a block."""
    found = [sample for sample in samples if sample.blocks]
    blocks = counted_blocks(found)
    duration_s = sum(block.duration_s for block in blocks)
    return Reading(
        at_s=sum(sample.at_s for sample in found) / len(found) + duration_s / 2,
        duration_s=duration_s,
        num_units=sum(block.num_units for block in blocks) * sustained_share(blocks),
        num_steps=sum(block.num_steps for block in blocks),
        wait_s=sum(block.wait_s for block in blocks),
        wait_cpu_s=sum(block.wait_cpu_s for block in blocks),
    )


def recall(records: Iterable[TrialRecord]) -> Iterator[Visit]:
    """The stored trials of a study, as the search takes them into account.

    Those that were interrupted tell nothing.
    """
    for record in records:
        failure = record.failure
        if failure is not None and failure.cause is not FailureCause.INTERRUPTED:
            yield Visit(config=record.config, outcome=failure)
        elif any(sample.blocks for sample in record.samples):
            yield Visit(config=record.config, outcome=read_samples(record.samples))
