"""Gives a running loop another loader: the same data, other workers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from autotune.config import ThroughputConfig
from autotune.instrument.loader_facts import LoaderFacts, is_dataloader
from autotune.instrument.prepared_loader import is_prepared
from autotune.worker_start import start_method_of


def is_swappable(loader: object, facts: LoaderFacts) -> bool:
    """Whether a loader can be changed in place: torch's own, and one that follows its settings.

    One that Accelerate prepared hands the work to another, which would not be changed.
    """
    return is_dataloader(loader) and not is_prepared(loader) and not facts.fixed


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
    set_worker_options(loader, config)


def set_worker_options(loader: Any, config: ThroughputConfig) -> None:  # noqa: ANN401
    """Have a DataLoader start its next workers, and read them, as `config` says.

    Args:
        loader: Of torch; one without workers is left as it is.
        config: The settings.

    Raises:
        ConfigError: See `ThroughputConfig.dataloader_kwargs`.
    """
    if not loader.num_workers:
        return
    options = config.worker_options()
    if config.in_order != getattr(loader, "in_order", True):
        loader.in_order = config.in_order
    method = options.get("multiprocessing_context", start_method_of(loader))
    # Where that is as it was, it may be a context of the script's own.
    if method != start_method_of(loader):
        loader.multiprocessing_context = method


def forget_peak_memory() -> None:
    """Have the kernel count the peak of this process's memory from now on.

    Source: proc_pid_clear_refs(5).
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
