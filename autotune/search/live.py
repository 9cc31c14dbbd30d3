"""Real runs for the adaptive search: started, measured, and stored as they go on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from autotune.blocks import Sample
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, counted_blocks, sustained_share
from autotune.search.adaptive import MAX_OPEN, EarlierRun, Reading
from autotune.search.recorder import Recorder
from autotune.search.records import Phase, TrialRecord
from autotune.search.visits import Run
from autotune.trials.memory import memory_left_bytes, shared_memory_left_bytes
from autotune.trials.trial import TrialFailedError

# Of the free memory, and of that in /dev/shm, what one more run may be expected to take.
_MEMORY_SHARE = 0.5


class LiveBench:
    """Runs of the study's command. See `adaptive.Bench`.

    What a run has shown is stored after each measurement, so that a killed study loses none of it.

    Args:
        recorder: Starts runs, knows what one may take, and stores how it ended.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._open: dict[int, Run] = {}
        # What a run was seen to hold at most; no other is expected to take more.
        self._held_bytes = self._shared_bytes = 0
        self._uses_device = False

    @property
    def now_s(self) -> float:
        """Unix time."""
        return time.time()

    def has_room(self, config: ThroughputConfig) -> bool:
        """Whether a run of a configuration can be open beside those that are.

        GPUs have no room to spare as a rule, and torch's allocator gives nothing back.
        """
        if len(self._open) >= MAX_OPEN or (self._uses_device and self._open):
            return False
        shared_left = shared_memory_left_bytes()
        return self._held_bytes <= _MEMORY_SHARE * memory_left_bytes() and (
            shared_left is None or self._shared_bytes <= _MEMORY_SHARE * shared_left
        )

    def open(self, config: ThroughputConfig) -> int | Failure:
        """Start a run of a configuration, settled; gives its number in the study."""
        number = self._recorder.store.begin(config, Phase.SEARCH)
        mode = self._recorder.runner.mode
        started_s = time.monotonic()
        try:
            trial = self._recorder.runner.start(config, mode)
            mode = trial.mode
            try:
                limits = self._recorder.limits(config)
                run = Run(trial, self._recorder.definition, limits, whole=False)
            except BaseException:
                trial.close()
                raise
        except TrialFailedError as error:
            self._recorder.keep(number, error.failure, mode, time.monotonic() - started_s)
            return error.failure
        self._open[number] = run
        self._look_at(run.samples[-1])
        return number

    def measure(self, run: int, num_blocks: int) -> Reading | Failure:
        """Time blocks of an open run; disturbed ones again, within a bound."""
        measured = self._open[run]
        num_before = len(measured.samples)
        try:
            measured.measure_until(num_blocks, self._recorder.keeper)
        except TrialFailedError as error:
            del self._open[run]
            measured.trial.close()
            self._recorder.keep(run, error.failure, measured.trial.mode, measured.trial.active_s)
            return error.failure
        self._recorder.store.set_samples(run, measured.samples)
        new = measured.samples[num_before:]
        self._look_at(new[-1])
        return read_samples(new)

    def close(self, run: int) -> None:
        """End an open run."""
        ended = self._open.pop(run)
        ended.trial.close()
        if any(sample.blocks for sample in ended.samples):
            self._recorder.keep(run, ended.outcome(), ended.trial.mode, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in tuple(self._open):
            self.close(number)

    def _look_at(self, sample: Sample) -> None:
        held = sample.memory_bytes + sample.shared_memory_bytes
        self._held_bytes = max(self._held_bytes, held)
        self._shared_bytes = max(self._shared_bytes, sample.shared_memory_bytes)
        self._uses_device |= sample.device_memory_bytes is not None


def read_samples(samples: Iterable[Sample]) -> Reading:
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


def recall(records: Iterable[TrialRecord]) -> list[EarlierRun]:
    """The stored runs of a study, as the search takes them into account.

    Of those that were interrupted, what they showed until then.
    """
    found = []
    for record in records:
        failure = record.failure
        if failure is not None and failure.cause is FailureCause.INTERRUPTED:
            failure = None
        readings = [read_samples([sample]) for sample in record.samples if sample.blocks]
        found.append(
            EarlierRun(
                number=record.number,
                config=record.config,
                readings=tuple(readings),
                failure=failure,
            )
        )
    return found
