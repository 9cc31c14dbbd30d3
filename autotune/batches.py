"""The batches of a trial's loader: taken, counted, held, and begun again."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, Generic, TypeVar

from autotune.host import TrialProcess
from autotune.measurement import FailureCause

Batch = TypeVar("Batch")

# The step's probe feeds the loop so many batches in turn, so that their lengths may differ, or as
# many as the loader delivers in so many seconds.
_NUM_HELD = 4
_HOLD_S = 0.5
_END: Any = object()


class Batches(Generic[Batch]):
    """The loader's batches, epoch after epoch.

    Attributes:
        num_taken: Batches so far.
        num_epoch_ends: Times that the data ended and was begun again.
        epoch_end_s: Seconds that these took, up to the first batch after each.
    """

    def __init__(self, trial: TrialProcess, loader: Iterable[Batch]) -> None:
        self.num_taken = 0
        self.num_epoch_ends = 0
        self.epoch_end_s = 0.0
        self._trial = trial
        self._loader = loader
        self._iterator = iter(loader)
        self._capacity = trial.config.num_prefetched

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in an epoch, where the loader knows."""
        with contextlib.suppress(TypeError, NotImplementedError):
            return len(self._loader) if isinstance(self._loader, Sized) else None
        return None

    def take(self) -> Batch:
        """The next batch. An epoch's end costs what it costs in training: a new iterator."""
        batch = next(self._iterator, _END)
        if batch is _END:
            start_s = time.monotonic()
            self._iterator = iter(self._loader)
            batch = next(self._iterator, _END)
            self.num_epoch_ends += 1
            self.epoch_end_s += time.monotonic() - start_s
        if batch is _END:
            self._report_end()
        self.num_taken += 1
        return batch

    def num_ready(self) -> int:
        """Batches that workers have finished and the loop has not taken; 0 where nobody knows.

        Read from the DataLoader iterator's own bookkeeping (torch 2.x), which has no public
        counterpart: a queue of finished batches, and those that arrived out of turn.
        """
        tasks = getattr(self._iterator, "_task_info", None)
        queue = getattr(self._iterator, "_data_queue", None)
        if tasks is None or queue is None:
            return 0
        try:
            return int(queue.qsize()) + sum(len(task) == 2 for task in tasks.values())
        except NotImplementedError:  # macOS counts no semaphores.
            return 0

    def discard_ready(self) -> int:
        """Throw away what is ready; gives how many batches that were."""
        num_discarded = self.num_ready()
        for _ in range(num_discarded):
            self.take()
        return num_discarded

    @contextlib.contextmanager
    def held(self) -> Iterator[Iterator[Batch]]:
        """A few batches, again and again, while the loader's workers stand still."""
        deadline_s = time.monotonic() + _HOLD_S
        batches = [self.take()]
        while len(batches) < _NUM_HELD and time.monotonic() < deadline_s:
            batches.append(self.take())
        self._signal_workers(signal.SIGSTOP)
        try:
            yield itertools.cycle(batches)
        finally:
            self._signal_workers(signal.SIGCONT)

    def begin_epoch(self, limit_s: float) -> float | None:
        """Seconds from asking for a new epoch to its first batch.

        At an epoch's end the workers have nothing left to do. So they are given up to `limit_s`
        seconds to come to rest before. None where the data cannot be read again.
        """
        deadline_s = time.monotonic() + limit_s
        while self.num_ready() < self._capacity and time.monotonic() < deadline_s:
            time.sleep(0.001)
        start_s = time.monotonic()
        iterator = iter(self._loader)
        if iterator is self._loader:
            return None
        self._iterator = iterator
        if next(self._iterator, _END) is _END:
            return None
        return time.monotonic() - start_s

    def _signal_workers(self, number: signal.Signals) -> None:
        # Private, as above. Other children of the script may be needed by its step.
        for worker in getattr(self._iterator, "_workers", ()):
            with contextlib.suppress(OSError):
                os.kill(worker.pid, number)

    def _report_end(self) -> None:
        if self.num_taken == 0:
            self._trial.end(
                FailureCause.NO_DATA,
                "the loader delivered no batch: is the dataset "
                "empty, or smaller than a batch with drop_last?",
            )
        self._trial.end(
            FailureCause.LOOP_ENDED,
            f"the data ended after {self.num_taken} steps and cannot be read again: pass "
            "autotune.steps a loader, not an iterator",
        )


def count_samples(batch: object, batch_size: int) -> int:
    """Samples in a batch: `batch_size`, or fewer where the batch is plainly a last, partial one.

    That is so where all its tensors agree on a smaller first dimension, and nothing in it has
    `batch_size` entries: what a batch looks like is the script's own affair (time first, a tuple
    of images, several parts), and a wrong guess would compare batch sizes wrongly.
    """
    lengths: set[int] = set()
    first_dimensions: set[int] = set()
    _collect(batch, lengths, first_dimensions, depth=3)
    if len(first_dimensions) == 1 and batch_size not in lengths:
        return min(batch_size, *first_dimensions)
    return batch_size


def _collect(part: object, lengths: set[int], first_dimensions: set[int], depth: int) -> None:
    """Lengths of all containers and dimensions in a batch, and the first ones of its tensors."""
    shape = getattr(part, "shape", None)
    if shape:
        lengths.update(shape)
        first_dimensions.add(int(shape[0]))
    elif isinstance(part, (list, tuple, Mapping)) and depth:
        if isinstance(part, (list, tuple)):
            lengths.add(len(part))
        for inner in part.values() if isinstance(part, Mapping) else part:
            _collect(inner, lengths, first_dimensions, depth - 1)
