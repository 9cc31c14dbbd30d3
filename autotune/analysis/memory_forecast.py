"""What a configuration will take of the memory, from what lighter ones took."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.blocks import DeviceMemory
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, fullest_device
from autotune.memory_order import is_heavier
from autotune.study.records import TrialRecord

_MIB, _GIB = 2**20, 2**30


def foresee_exhaustion(
    config: ThroughputConfig,
    records: Sequence[TrialRecord],
    *,
    memory_left_bytes: int,
    shared_memory_left_bytes: int | None,
    gpu_headroom: float,
) -> Failure | None:
    """Why `config` should not even be started; None where it will fit, or nothing is known.

    Args:
        config: What is to run.
        records: What has run.
        memory_left_bytes: What may still be taken of the machine's memory.
        shared_memory_left_bytes: The same of `/dev/shm`; None where there is none.
        gpu_headroom: Share of a GPU's memory that must stay free.
    """
    device = _on_device(config, records)
    if device is not None:
        needed, total = device
        if needed > (1 - gpu_headroom) * total:
            return Failure(
                cause=FailureCause.NO_HEADROOM,
                message=f"not started: by smaller batches about {needed / _GIB:,.1f} GiB of the "
                f"GPU's {total / _GIB:,.1f} GiB would be taken, and a training must leave "
                f"{100 * gpu_headroom:.0f} % free (--gpu-headroom {gpu_headroom:.2g})",
            )
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
            alike = (larger.num_workers, larger.num_prefetched, larger.malloc) == (
                smaller.num_workers,
                smaller.num_prefetched,
                smaller.malloc,
            )
            if alike and larger.batch_size > smaller.batch_size:
                per_sample = (more - less) / (larger.batch_size - smaller.batch_size)
                wanted = max(wanted, more + per_sample * (config.batch_size - larger.batch_size))
    return wanted


def _on_device(
    config: ThroughputConfig, records: Sequence[TrialRecord]
) -> tuple[float, int] | None:
    """Bytes of a GPU that will be taken at least, and its bytes; None where nothing tells.

    Tensors take as much more for each further sample of a batch as for others, told by two batch
    sizes; the allocator takes more than that, and contexts and other processes as much as they did.
    """
    found: dict[int, DeviceMemory] = {}
    for record in records:
        device = fullest_device(record.samples)
        size = record.config.batch_size
        if record.measurement is None or device is None:
            continue
        if size >= config.batch_size:
            # What takes as much has run.
            return None
        if size not in found or device.allocated_bytes < found[size].allocated_bytes:
            found[size] = device
    if len(found) < 2:
        return None
    *_, smaller, larger = sorted(found)
    less, more = found[smaller], found[larger]
    per_sample = (more.allocated_bytes - less.allocated_bytes) / (larger - smaller)
    tensors = more.allocated_bytes + max(0.0, per_sample) * (config.batch_size - larger)
    return tensors + more.others_bytes, more.total_bytes


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
