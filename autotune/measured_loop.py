"""The loop of a trial: its batches, endless, and timed whenever the coordinator asks."""

from __future__ import annotations

import gc
import inspect
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from types import TracebackType
from typing import Any, Generic, TypeVar

from autotune.host import TrialProcess
from autotune.measurement import Block, FailureCause

Batch = TypeVar("Batch")
UnitCounter = Callable[[Any], float]


class MeasuredSteps(Generic[Batch]):
    """The loop's batches in a trial: endless, and timed whenever the coordinator asks."""

    def __init__(
        self, trial: TrialProcess, loader: Iterable[Batch], units: UnitCounter | None
    ) -> None:
        self._trial = trial
        self._loader = loader
        self._units = units

    def __len__(self) -> int:
        if isinstance(self._loader, Sized):
            return len(self._loader)
        raise TypeError(f"{type(self._loader).__name__} has no length")

    def __iter__(self) -> Iterator[Batch]:
        batches = _Batches(self._trial, self._loader)
        if self._trial.rank > 0:
            # Only the first rank is timed; the others follow it through their collectives.
            while True:
                yield batches.take()
        try:
            self._trial.send(type="ready", unit=_unit_name(self._units))
            while True:
                request = self._trial.receive()
                yield from self._lead_in(batches, request["lead_in_s"])
                blocks = yield from self._measure(batches, request)
                self._trial.send(type="blocks", blocks=blocks)
        except GeneratorExit:
            if not _is_unwinding(sys._getframe(1)):
                self._trial.end(
                    FailureCause.LOOP_ENDED,
                    f"the loop left autotune.steps after {batches.num_taken} steps: let it run "
                    "on where autotune.is_trial(), or give the command more steps",
                )
            raise

    def _lead_in(self, batches: _Batches[Batch], limit_s: float) -> Iterator[Batch]:
        """Steps that are not counted, until the prefetch buffer is as it is in steady state.

        A pause fills the buffer. A loader that keeps up fills it again after a step; one that
        does not lets it run dry; between the two, the flow balance over the blocks corrects.
        """
        capacity = self._trial.config.num_prefetched if limit_s > 0 else 0
        deadline_s = time.monotonic() + limit_s
        for _ in range(capacity):
            yield batches.take()
            num_ready = batches.num_ready()
            settled = num_ready == 0 or num_ready >= capacity - 1
            if settled or time.monotonic() > deadline_s:
                return

    def _measure(
        self, batches: _Batches[Batch], request: Mapping[str, Any]
    ) -> Generator[Batch, None, list[dict[str, Any]]]:
        blocks: list[dict[str, Any]] = []
        for _ in range(request["num_blocks"]):
            block = yield from self._block(
                batches, request["min_s"], request["min_steps"], request["multiple_of"]
            )
            blocks.append({name: getattr(block, name) for name in Block.__slots__})
        return blocks

    def _block(
        self, batches: _Batches[Batch], min_s: float, min_steps: int, multiple_of: int
    ) -> Generator[Batch, None, Block]:
        """Time steps until both minima are reached and their number is a multiple."""
        num_steps = num_samples = 0
        num_units = wait_s = first_batch_at_s = 0.0
        num_ready = batches.num_ready()
        _synchronise()
        start_s = asked_s = time.monotonic()
        while True:
            batch = batches.take()
            got_s = time.monotonic()
            wait_s += got_s - asked_s
            if num_steps == 0:
                first_batch_at_s = got_s
            size = count_samples(batch, self._trial.config.batch_size)
            num_samples += size
            num_units += self._units(batch) if self._units else size
            yield batch
            num_steps += 1
            asked_s = time.monotonic()
            enough = num_steps >= min_steps and asked_s - start_s >= min_s
            if enough and num_steps % multiple_of == 0:
                break
        _synchronise()
        return Block(
            num_steps=num_steps,
            num_samples=num_samples,
            num_units=float(num_units),
            duration_s=time.monotonic() - start_s,
            wait_s=wait_s,
            first_batch_at_s=first_batch_at_s,
            ready_change=batches.num_ready() - num_ready,
        )


class _Batches(Generic[Batch]):
    """The loader's batches, epoch after epoch."""

    def __init__(self, trial: TrialProcess, loader: Iterable[Batch]) -> None:
        self._trial = trial
        self._loader = loader
        self._iterator = iter(loader)
        self.num_taken = 0

    def take(self) -> Batch:
        """The next batch. An epoch's end costs what it costs in training: a new iterator."""
        batch = next(self._iterator, _END)
        if batch is _END:
            self._iterator = iter(self._loader)
            batch = next(self._iterator, _END)
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


_END: Any = object()


def _unit_name(units: UnitCounter | None) -> str | None:
    """A function's name names the unit; a lambda has none worth showing."""
    if units is None:
        return None
    name = getattr(units, "__name__", "")
    return name if name.isidentifier() else "units"


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


def _synchronise() -> None:
    """Wait for the GPU, at the edges of blocks only; nothing where there is none in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _is_unwinding(frame: Any) -> bool:  # noqa: ANN401
    """Whether an exception is on its way out through the frames that were iterating.

    A loop that breaks and a loop whose body raises both close the generator that fed it. Only in
    the second case is there a traceback that stands at the current line of one of these frames;
    the exception must go on, so that it is seen. (Python 3.11 attaches the traceback to the
    exception only where it is caught, hence the search for the traceback itself.)
    """
    lines = set()
    while frame is not None:
        # A generator between (tqdm) is closed by an exception of its own, which tells nothing.
        if not frame.f_code.co_flags & inspect.CO_GENERATOR:
            lines.add((id(frame), frame.f_lineno))
        frame = frame.f_back
    return any(
        (id(candidate.tb_frame), candidate.tb_lineno) in lines
        for candidate in gc.get_objects()
        # Not isinstance, which asks objects for their __class__, and some answer with warnings.
        if type(candidate) is TracebackType
    )
