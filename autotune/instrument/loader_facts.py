"""What a loader says of itself, and whether it follows its configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from autotune.config import ThroughputConfig
from autotune.instrument.prepared_loader import batch_sizes
from autotune.worker_start import start_method_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoaderFacts:
    """What is known of a loader before it delivers anything.

    Attributes:
        batch_size: Samples in a full batch of this process, where torch's DataLoader makes the
            batches itself.
        steps_per_epoch: Batches in an epoch.
        samples_per_epoch: Samples that an epoch is drawn from, whatever the batch size.
        fixed: Settings that the loader does not take from the configuration, with the reason.
    """

    batch_size: int | None = None
    steps_per_epoch: int | None = None
    samples_per_epoch: int | None = None
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict)


def describe_loader(loader: Any, config: ThroughputConfig) -> LoaderFacts:  # noqa: ANN401
    """What a loader says of itself.

    Args:
        loader: A DataLoader, a wrapper of one, or anything else that gives batches.
        config: The configuration that it should follow.
    """
    fixed = {}
    # A prepared loader (Accelerate) tells its batch size only through its batch sampler.
    batch_sampler = getattr(loader, "batch_sampler", None)
    batch_size = getattr(loader, "batch_size", None) or getattr(batch_sampler, "batch_size", None)
    if not isinstance(batch_size, int):
        batch_size = None
    asked, share = (None, None) if batch_size is None else batch_sizes(loader, batch_size)
    is_torch = is_dataloader(loader)
    if batch_size is None and batch_sampler is not None:
        fixed["batch_size"] = "the loader has a batch_sampler of its own"
    elif is_torch and asked is not None and asked != config.batch_size:
        fixed["batch_size"] = f"the loader was made with batch_size={asked}"
    num_workers = getattr(loader, "num_workers", config.num_workers)
    if is_torch and num_workers != config.num_workers:
        fixed["num_workers"] = f"the loader was made with num_workers={num_workers}"
    elif is_torch and num_workers:
        fixed |= _fixed_of_workers(loader, config)
    if is_torch and bool(loader.pin_memory) != config.pin_memory:
        fixed["pin_memory"] = f"the loader was made with pin_memory={loader.pin_memory}"
    return LoaderFacts(
        batch_size=share if is_torch else None,
        steps_per_epoch=_length(loader),
        samples_per_epoch=samples_per_epoch(loader),
        fixed=fixed,
    )


def _fixed_of_workers(loader: Any, config: ThroughputConfig) -> dict[str, str]:  # noqa: ANN401
    """What a DataLoader with workers does not take from the configuration, with the reason."""
    own = {
        "prefetch_factor": loader.prefetch_factor,
        "in_order": getattr(loader, "in_order", True),
        "multiprocessing_context": start_method_of(loader),
    }
    return {
        name: f"the loader was made with {name}={value}"
        for name, value in own.items()
        if value != getattr(config, name)
    }


def is_iterable_dataset(dataset: object) -> bool:
    """Whether a dataset gives its samples in an order of its own."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(dataset, torch.utils.data.IterableDataset)


def is_dataloader(loader: object) -> bool:
    """Whether a loader is torch's own, or a subclass of it."""
    module = sys.modules.get("torch.utils.data")
    return module is not None and isinstance(loader, module.DataLoader)


def samples_per_epoch(loader: Any) -> int | None:  # noqa: ANN401
    """Samples that a loader draws an epoch from, where it tells."""
    if is_iterable_dataset(getattr(loader, "dataset", None)):
        return None
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    for source in (sampler, getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
        length = _length(source)
        if length is not None:
            return length
    return None


def _length(thing: object) -> int | None:
    """Its length, where it has one that is more than a guess."""
    if not hasattr(type(thing), "__len__"):
        return None
    with contextlib.suppress(TypeError, NotImplementedError):
        return len(thing)  # type: ignore[arg-type]
    return None
