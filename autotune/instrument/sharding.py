"""Whether the workers of a loader repeat each other's samples."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import pickle
import random
import sys
from collections.abc import Callable
from typing import Any

from autotune.instrument.loader_facts import is_iterable_dataset

# So many samples of each of two workers are compared.
_NUM_COMPARED, _NUM_WORKERS = 4, 2
_SEED = 20


def repeats_samples(loader: Any) -> bool:  # noqa: ANN401
    """Whether each worker of a loader reads the whole of an iterable dataset.

    A map-style dataset is shared out by the sampler. An iterable one is copied to each worker, and
    has to read its share by itself. Two workers with the same random seed are asked for their first
    samples: if these are the same, and not all alike anyway, so will be all others.

    Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.IterableDataset
    """
    dataset = getattr(loader, "dataset", None)
    if getattr(loader, "num_workers", 0) < 2 or not is_iterable_dataset(dataset):
        return False
    torch = sys.modules["torch"]
    check = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        num_workers=_NUM_WORKERS,
        prefetch_factor=_NUM_COMPARED,
        collate_fn=_digest,
        worker_init_fn=functools.partial(_seed_alike, loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context,
    )
    # Workers deliver in turn: sample after sample, the same place of each worker's share.
    firsts = list(itertools.islice(check, _NUM_COMPARED * _NUM_WORKERS))
    one, other = (firsts[worker::_NUM_WORKERS] for worker in range(_NUM_WORKERS))
    return len(set(one)) > 1 and one == other


def _seed_alike(original: Callable[[int], None] | None, worker: int) -> None:
    """In a worker: what it draws at random is what all workers draw."""
    if original is not None:
        original(worker)
    random.seed(_SEED)
    numpy, torch = sys.modules.get("numpy"), sys.modules["torch"]
    torch.manual_seed(_SEED)
    if numpy is not None:
        numpy.random.seed(_SEED)


def _digest(sample: Any) -> bytes:  # noqa: ANN401
    """A sample as bytes that can be compared."""
    buffer = io.BytesIO()
    with contextlib.suppress(pickle.PicklingError, TypeError, AttributeError):
        pickle.dump(_plain(sample), buffer)
    return buffer.getvalue()


def _plain(part: Any) -> Any:  # noqa: ANN401
    """Tensors as arrays: pickled by themselves they hold where their memory lies."""
    torch = sys.modules["torch"]
    if isinstance(part, torch.Tensor):
        return part.detach().cpu().numpy().tobytes(), tuple(part.shape)
    if isinstance(part, dict):
        return {key: _plain(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [_plain(value) for value in part]
    return part
