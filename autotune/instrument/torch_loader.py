"""What torch's own DataLoader iterators do, also where a wrapper hides them.

Accelerate and others iterate a DataLoader inside a generator of theirs. What a trial must know of
the iterator below (its workers, the batches that these hold ready, the samples in each batch) is
noted by the iterator's class itself. The names are private, and the same in torch 2.2 to 2.13.

How many samples a batch holds, its sampler knows; of an iterable dataset only who puts the batch
together: any of its batches can be partial, the last of each worker. So there the number travels
with the batch, out of workers too unless they were started without these notes (spawned).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

_MODULE = "torch.utils.data.dataloader"
# The latest iterators that began an epoch, numbered in that order.
_begun: collections.deque[tuple[int, weakref.ref[Any]]] = collections.deque(maxlen=64)
_numbers = itertools.count()
# Samples that stand for all others, see `repeat_samples`.
_repeated: dict[int, Sequence[int]] = {}


def install() -> None:
    """Have torch's iterators note what they do; without torch there is nothing to note."""
    module = sys.modules.get(_MODULE)
    if module is None or hasattr(module._BaseDataLoaderIter, "_autotune_installed"):
        return
    base: Any = module._BaseDataLoaderIter
    base._autotune_installed = True
    base.__init__ = _wrap_init(base.__init__)
    base._reset = _wrap_reset(base._reset)
    base._next_index = _wrap_next_index(base._next_index)
    base.__next__ = _wrap_next(base.__next__)
    fetcher: Any = sys.modules["torch.utils.data._utils.fetch"]._IterableDatasetFetcher
    fetcher.__init__ = _wrap_fetcher_init(fetcher.__init__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Counted:
    """A batch on its way to the loop, and how many samples it was made of."""

    num_samples: int
    batch: Any

    def pin_memory(self, *arguments: Any) -> _Counted:  # noqa: ANN401
        """What torch calls on what it does not know."""
        pin = sys.modules["torch.utils.data._utils.pin_memory"].pin_memory
        return _Counted(self.num_samples, pin(self.batch, *arguments))


def _collate_counted(collate: Any, samples: Sequence[Any]) -> _Counted:  # noqa: ANN401
    return _Counted(len(samples), collate(samples))


def mark() -> int:
    """A point in the order in which epochs begin, for `iterators_below`."""
    return next(_numbers)


def is_torch_iterator(iterator: object) -> bool:
    """Whether it is one of torch's own, so that nothing reads ahead without being known."""
    module = sys.modules.get(_MODULE)
    return module is not None and isinstance(iterator, module._BaseDataLoaderIter)


def take_sample_count(iterator: Any) -> int | None:  # noqa: ANN401
    """How many samples the oldest batch holds that was delivered and not asked for yet.

    None without automatic batching, where workers do not count, and where nothing was delivered.
    """
    counts = getattr(iterator, "_autotune_delivered", None)
    return counts.popleft() if counts else None


def num_ready(iterator: Any) -> int:  # noqa: ANN401
    """Batches that its workers have finished and nobody has taken; 0 without workers.

    These are a queue of finished batches, and those that arrived out of turn. Where a thread copies
    them to page-locked memory, they are in its queue, or in that of the workers before.
    """
    tasks = getattr(iterator, "_task_info", None)
    queue = getattr(iterator, "_data_queue", None)
    if tasks is None or queue is None:
        return 0
    queues = {id(found): found for found in (queue, iterator._worker_result_queue)}
    try:
        num_queued = sum(int(found.qsize()) for found in queues.values())
        return num_queued + sum(len(task) == 2 for task in tasks.values())
    except NotImplementedError:  # macOS counts no semaphores.
        return 0


def workers_of(iterator: Any) -> Sequence[Any]:  # noqa: ANN401
    """Its worker processes."""
    return getattr(iterator, "_workers", ())


def repeat_samples(dataset: object, indices: Sequence[int]) -> None:
    """Have every loader over a map-style dataset draw these samples again and again."""
    _repeated[id(dataset)] = indices


def _wrap_init(original: Any) -> Any:  # noqa: ANN401
    @functools.wraps(original)
    def init(self: Any, loader: Any) -> None:  # noqa: ANN401
        self._autotune_drawn = collections.deque()
        self._autotune_delivered = collections.deque()
        original(self, loader)
        _begun.append((next(_numbers), weakref.ref(self)))

    return init


def _wrap_reset(original: Any) -> Any:  # noqa: ANN401
    @functools.wraps(original)
    def reset(self: Any, loader: Any, first_iter: bool = False) -> None:  # noqa: ANN401
        # Persistent workers begin each epoch here, and several workers also the first one.
        self._autotune_drawn.clear()
        if not first_iter:
            _begun.append((next(_numbers), weakref.ref(self)))
        original(self, loader, first_iter)

    return reset


def _wrap_next_index(original: Any) -> Any:  # noqa: ANN401
    @functools.wraps(original)
    def next_index(self: Any) -> Any:  # noqa: ANN401
        index = original(self)
        module = sys.modules[_MODULE]
        if self._auto_collation and self._dataset_kind != module._DatasetKind.Iterable:
            self._autotune_drawn.append(len(index))
            kept = _repeated.get(id(self._dataset))
            if kept:
                index = [kept[hash(one) % len(kept)] for one in index]
        return index

    return next_index


def _wrap_next(original: Any) -> Any:  # noqa: ANN401
    @functools.wraps(original)
    def following(self: Any) -> Any:  # noqa: ANN401
        batch = original(self)
        if isinstance(batch, _Counted):
            self._autotune_delivered.append(batch.num_samples)
            return batch.batch
        if self._autotune_drawn:
            self._autotune_delivered.append(self._autotune_drawn.popleft())
        return batch

    return following


def _wrap_fetcher_init(original: Any) -> Any:  # noqa: ANN401
    @functools.wraps(original)
    def init(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        original(self, *arguments, **options)
        if self.auto_collation:
            self.collate_fn = functools.partial(_collate_counted, self.collate_fn)

    return init


def iterators_below(iterator: object, since: int, until: int) -> Iterator[Any]:
    """Torch's iterators that feed an iterator: itself, or those that a wrapper began meanwhile.

    Args:
        iterator: What a loader's `iter` gave.
        since: `mark` before that.
        until: `mark` after its first batch.
    """
    if is_torch_iterator(iterator):
        yield iterator
        return
    for number, reference in tuple(_begun):
        found = reference()
        if since < number < until and found is not None:
            yield found
