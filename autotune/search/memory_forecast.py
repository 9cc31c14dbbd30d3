"""What a configuration will take of the memory, from what lighter ones took."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.search.knowledge import is_heavier
from autotune.search.records import TrialRecord

_MIB = 2**20


def foresee_exhaustion(
    config: ThroughputConfig,
    records: Sequence[TrialRecord],
    *,
    memory_left_bytes: int,
    shared_memory_left_bytes: int | None,
) -> Failure | None:
    """Why `config` should not even be started; None where it will fit, or nothing is known.

    Args:
        config: What is to run.
        records: What has run.
        memory_left_bytes: What may still be taken of the machine's memory.
        shared_memory_left_bytes: The same of `/dev/shm`; None where there is none.
    """
    wanted = _memory_bytes(config, records)
    if wanted > memory_left_bytes:
        return _failure(FailureCause.OUT_OF_MEMORY, wanted, memory_left_bytes, "memory")
    wanted = _shared_memory_bytes(config, records)
    if shared_memory_left_bytes is not None and wanted > shared_memory_left_bytes:
        cause = FailureCause.OUT_OF_SHARED_MEMORY
        return _failure(cause, wanted, shared_memory_left_bytes, "/dev/shm")
    return None


def _memory_bytes(config: ThroughputConfig, records: Sequence[TrialRecord]) -> float:
    """As much as a lighter one, and for each further sample of a batch as much more as for others.

    That is told by two that differ in the size of their batches alone.
    """
    taken = {
        record.config: float(record.measurement.peak_memory_bytes)
        for record in records
        if record.measurement is not None and is_heavier(config, record.config)
    }
    wanted = max(taken.values(), default=0.0)
    for larger, more in taken.items():
        for smaller, less in taken.items():
            alike = (larger.num_workers, larger.num_prefetched) == (
                smaller.num_workers,
                smaller.num_prefetched,
            )
            if alike and larger.batch_size > smaller.batch_size:
                per_sample = (more - less) / (larger.batch_size - smaller.batch_size)
                wanted = max(wanted, more + per_sample * (config.batch_size - larger.batch_size))
    return wanted


def _shared_memory_bytes(config: ThroughputConfig, records: Sequence[TrialRecord]) -> float:
    """Loader workers keep the batches there that they have prepared."""
    per_sample = [
        record.measurement.shared_memory_bytes
        / (record.config.num_prefetched * record.config.batch_size)
        for record in records
        if record.measurement is not None and record.config.num_prefetched
    ]
    # The least of them: blocks begin with a buffer that is more or less full.
    return min(per_sample, default=0.0) * config.num_prefetched * config.batch_size


def _failure(cause: FailureCause, wanted: float, left: int, what: str) -> Failure:
    message = (
        f"not started: by lighter ones it needs about {wanted / _MIB:,.0f} MiB of {what}, "
        f"and {left / _MIB:,.0f} MiB are left"
    )
    return Failure(cause=cause, message=message)
