"""Loaders that Accelerate has prepared, where several ranks train together.

While nothing is counted, a rank may take batches when the others take none. Such a loader would
wait for them then.
"""

from __future__ import annotations

import sys
from typing import Any

from autotune.instrument.ranks import find_place

_MODULE = "accelerate.data_loader"


def is_prepared(loader: object) -> bool:
    """Whether Accelerate wraps the loader that reads."""
    return hasattr(loader, "base_dataloader")


def is_dispatched(loader: object) -> bool:
    """Whether one rank reads for all, so that these can take their batches together only."""
    module = sys.modules.get(_MODULE)
    if module is None or find_place().world_size == 1:
        return False
    return isinstance(loader, module.DataLoaderDispatcher)


def begin_alone(loader: Any) -> None:  # noqa: ANN401
    """Let each rank begin its epochs by itself; it would agree on a random state with the others.

    They may then draw the same sample, which takes them as long as another.
    """
    if is_prepared(loader) and getattr(loader, "rng_types", None):
        loader.rng_types = None


def batch_sizes(loader: Any, declared: int) -> tuple[int, int]:  # noqa: ANN401
    """Samples in a batch as it was asked for, and in the part of it that this rank gets.

    With `split_batches` the ranks share out each batch.

    Args:
        loader: Any loader.
        declared: The batch size that it, or its batch sampler, tells.
    """
    num_ranks = find_place().world_size
    # An iterable dataset is wrapped, and the loader around it makes the parts.
    if getattr(getattr(loader, "dataset", None), "split_batches", False):
        return declared * num_ranks, declared
    splitters = (loader, getattr(loader, "batch_sampler", None))
    if is_prepared(loader) and any(getattr(one, "split_batches", False) for one in splitters):
        return declared, declared // num_ranks
    return declared, declared
