"""Which configurations need at least as much memory as others."""

from __future__ import annotations

from autotune import allocator
from autotune.config import ThroughputConfig
from autotune.measurement import FailureCause


def needs_as_much(
    config: ThroughputConfig, exhausted: ThroughputConfig, cause: FailureCause
) -> bool:
    """Whether `config` needs at least as much of what another one ran out of.

    The memory of a GPU depends on the batch, and on what cuDNN tries its algorithms in; everything
    else on what the loader holds, too.
    """
    if cause.is_of_device:
        return (
            config.batch_size >= exhausted.batch_size
            and config.cudnn_benchmark >= exhausted.cudnn_benchmark
        )
    return is_heavier(config, exhausted)


def is_heavier(config: ThroughputConfig, other: ThroughputConfig) -> bool:
    """Whether `config` needs at least as much memory as `other` in every way."""
    return (
        config.batch_size >= other.batch_size
        and config.num_workers >= other.num_workers
        and config.num_prefetched >= other.num_prefetched
        # Workers share memory with the process that they are forked from, and only with that.
        and (
            not other.num_workers or config.multiprocessing_context == other.multiprocessing_context
        )
        # What keeps its memory may take more than what gives it back.
        and other.malloc in (allocator.DEFAULT, config.malloc)
    )
