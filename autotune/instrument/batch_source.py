"""The batches of one pass over a loader: taken, counted, repeated, and begun again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from autotune.instrument import torch_loader
from autotune.instrument.prepared_loader import is_dispatched, is_prepared
from autotune.system.threads import may_load

# To time the step alone the loop is fed so many batches in turn, so that their lengths may differ,
# or as many as the loader delivers in so many seconds.
_NUM_HELD = 4
_HOLD_S = 0.5
# What reads ahead unseen is emptied until two stretches of so many seconds deliver alike, and for
# so long at most.
_DRAIN_WINDOW_S, _DRAIN_ALIKE, _DRAIN_LIMIT_S = 0.1, 0.15, 3.0
# Workers that have made nothing ready for so long are at rest; so long is waited for that at most.
_REST_S, _REST_LIMIT_S = 0.05, 1.0
_TASKS = Path("/proc/self/task")
END: Any = object()


class BatchSource:
    """The batches that one `iter` of a loader starts, and those of later epochs.

    Attributes:
        loader: What the loop iterates over.
        num_taken: Batches so far.
        num_epoch_ends: Times that the data ended and was begun again.
        epoch_end_s: Seconds that these took, up to the first batch after each.
        num_samples: Samples in the batch taken last, where the loader's sampler tells.
        continues: Whether the pass goes on where an earlier one was left: to begin it is then the
            end of an epoch.
        is_lockstep: Whether batches can be taken only together with the other ranks.
        is_watched: Whether somebody ends this process's workers where it is killed.

    Args:
        loader: See above.
        begin: Starts an epoch of it.
    """

    def __init__(self, loader: Iterable[Any], begin: Callable[[Any], Iterator[Any]] = iter) -> None:
        self.num_taken = 0
        self.num_epoch_ends = 0
        self.epoch_end_s = 0.0
        self.num_samples: int | None = None
        self.continues = False
        self.loader = loader
        self.is_watched = True
        self.is_lockstep = is_dispatched(loader)
        self._begin_epoch = begin
        self._iterator: Iterator[Any] | None = None
        self._begun_at, self._begun_until = 0, -1
        self._held: list[tuple[Any, int | None]] = []
        self._peeked: Any = END

    @property
    def is_held(self) -> bool:
        """Whether it gives a few batches again and again."""
        return bool(self._held)

    def peek(self) -> Any:  # noqa: ANN401
        """The batch that is taken next, or END."""
        if self._peeked is END:
            self._peeked = self.take()
        return self._peeked

    def take_once(self) -> Any:  # noqa: ANN401
        """The next batch of this epoch, or END."""
        if self._iterator is None:
            self._begin()
        assert self._iterator is not None
        batch = next(self._iterator, END)
        if self._begun_until < self._begun_at:
            # A wrapper may begin what it iterates with its first batch only.
            self._begun_until = torch_loader.mark()
        if batch is not END:
            self.num_taken += 1
            self.num_samples = self._count_drawn()
        return batch

    def take(self) -> Any:  # noqa: ANN401
        """The next batch of this epoch or of the next one; END where the data is used up.

        An epoch's end costs what it costs in training: a new iterator.
        """
        if self._held:
            self._held.append(self._held.pop(0))
            batch, self.num_samples = self._held[-1]
            return batch
        if self._peeked is not END:
            batch, self._peeked = self._peeked, END
            return batch
        start_s = time.monotonic()
        ended = self._iterator is None and self.continues
        batch = self.take_once()
        if batch is END and self.num_taken:
            ended = True
            self._begin()
            batch = self.take_once()
        if ended:
            self.num_epoch_ends += 1
            self.epoch_end_s += time.monotonic() - start_s
        return batch

    def has_workers(self) -> bool:
        """Whether something may load beside this process's own steps, as far as can be told."""
        if any(True for _ in self._torch_iterators()):
            return True
        return bool(multiprocessing.active_children() or psutil.Process().children()) or may_load()

    def num_ready(self) -> int:
        """Batches that workers have finished and the loop has not taken; 0 where nobody knows."""
        return sum(map(torch_loader.num_ready, self._torch_iterators()))

    def discard_ready(self) -> int:
        """Throw away what is ready; gives how many batches that were."""
        num_discarded = 0 if self.is_lockstep else self.num_ready()
        for _ in range(num_discarded):
            self.take()
        return num_discarded

    def drain(self) -> int:
        """Throw away what a loader has read ahead that does not tell how much that is.

        Taken at full speed, what is ready comes at once, and then as quickly as it is made. Gives
        how many batches were thrown away.
        """
        known = torch_loader.is_torch_iterator(self._iterator) or is_prepared(self.loader)
        if known or not _may_read_ahead():
            return 0
        start_s = time.monotonic()
        num_taken, previous = self.num_taken, 0.0
        while True:
            rate = self._window_rate()
            alike = abs(rate - previous) <= _DRAIN_ALIKE * rate
            if alike or time.monotonic() - start_s > _DRAIN_LIMIT_S:
                return self.num_taken - num_taken
            previous = rate

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A few batches, again and again, while the loader's workers stand still."""
        deadline_s = time.monotonic() + _HOLD_S
        held = [(self.take(), self.num_samples)]
        while len(held) < _NUM_HELD and time.monotonic() < deadline_s:
            held.append((self.take(), self.num_samples))
        with self.stopped():
            self._held = held
            try:
                yield
            finally:
                self._held = []

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The loader's workers stand still.

        A process that nobody watches over could be killed meanwhile, and leave workers that stand
        still for ever. There they go on until they have made ready all that they may, and what they
        have made is thrown away.
        """
        if self.is_watched:
            self._signal_workers(signal.SIGSTOP)
            try:
                yield
            finally:
                self._signal_workers(signal.SIGCONT)
            return
        num_ready = self.num_ready()
        self._await_rest()
        yield
        if not self.is_lockstep:
            for _ in range(self.num_ready() - num_ready):
                self.take()

    def _await_rest(self) -> None:
        """Wait until the workers make nothing more ready."""
        deadline_s, before = time.monotonic() + _REST_LIMIT_S, -1
        while (now := self.num_ready()) != before and time.monotonic() < deadline_s:
            before = now
            time.sleep(_REST_S)

    def begin_epoch(self, capacity: int, limit_s: float) -> float | None:
        """Seconds from asking for a new epoch to its first batch.

        At an epoch's end the workers have nothing left to do. So they are given up to `limit_s`
        seconds to make `capacity` batches ready before. None where the data cannot be read again.
        """
        deadline_s = time.monotonic() + limit_s
        while self.num_ready() < capacity and time.monotonic() < deadline_s:
            time.sleep(0.001)
        start_s = time.monotonic()
        self._begin()
        if self._iterator is self.loader:
            return None
        if self.take_once() is END:
            return None
        return time.monotonic() - start_s

    def restart(self) -> None:
        """Begin a new epoch, with an iterator of the loader as it is now."""
        self._peeked, self._iterator = END, None
        self._begin()

    def _begin(self) -> None:
        self._begun_at = torch_loader.mark()
        self._iterator = self._begin_epoch(self.loader)

    def _count_drawn(self) -> int | None:
        if self.is_lockstep:
            return None
        for iterator in self._torch_iterators():
            count = torch_loader.take_sample_count(iterator)
            if count is not None:
                return count
        return None

    def _torch_iterators(self) -> Iterator[Any]:
        return torch_loader.iterators_below(self._iterator, self._begun_at, self._begun_until)

    def _window_rate(self) -> float:
        """Batches per second over a stretch of taking them."""
        start_s = time.monotonic()
        num_taken = self.num_taken
        while time.monotonic() - start_s < _DRAIN_WINDOW_S:
            if self.take() is END:
                break
        return max(1, self.num_taken - num_taken) / (time.monotonic() - start_s)

    def _signal_workers(self, number: signal.Signals) -> None:
        # Other children of the script may be needed by its step.
        for iterator in self._torch_iterators():
            for worker in torch_loader.workers_of(iterator):
                with contextlib.suppress(OSError):
                    os.kill(worker.pid, number)


def _may_read_ahead() -> bool:
    """Whether there is a thread or a process that could fetch batches before they are asked for."""
    num_threads = len(list(_TASKS.iterdir())) if _TASKS.is_dir() else threading.active_count()
    return num_threads > 1 or bool(multiprocessing.active_children())
