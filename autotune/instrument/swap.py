"""Gives a running loop another loader: the same data, other workers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from autotune.config import ThroughputConfig
from autotune.instrument.loader_facts import LoaderFacts, is_dataloader


def is_swappable(loader: object, facts: LoaderFacts) -> bool:
    """Whether a loader can be changed in place: torch's own, and one that follows its settings."""
    return is_dataloader(loader) and not facts.fixed


def swap_settings(loader: Any, config: ThroughputConfig) -> None:  # noqa: ANN401
    """Have a DataLoader make its next iterator with the settings of `config`.

    Its workers end with the iterator that holds them. The batch size stays, as the batch sampler
    has it.

    Args:
        loader: Of torch; see `is_swappable`.
        config: With the batch size that the loader has.
    """
    loader._iterator = None
    # DataLoader lets nobody set `persistent_workers`, since it keeps iterators from before.
    vars(loader).update(
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch_factor,
        pin_memory=config.pin_memory,
        persistent_workers=bool(config.persistent_workers),
    )
    if not config.num_workers:
        # There is nobody to wait for, and torch refuses it.
        loader.timeout = 0


def forget_peak_memory() -> None:
    """Have the kernel count the peak of this process's memory from now on.

    Source: proc_pid_clear_refs(5).
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
