"""The two calls of a training loop, `load_config` and `steps`, and the measuring behind them."""

from __future__ import annotations

import gc
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError, MachineMismatchWarning
from autotune.host import TrialProcess, become_trial, current_trial, is_measured
from autotune.measurement import Block, FailureCause

Batch = TypeVar("Batch")
UnitCounter = Callable[[Any], float]


def load_config(
    path: str | os.PathLike[str] | None,
    *,
    default: ThroughputConfig,
    effective_batch_size: int | None = None,
) -> ThroughputConfig:
    """The settings to train with; their thread counts are set when this returns.

    In ordinary training: what the file at `path` holds, or `default` where there is none (or
    where `path` is None). Under `autotune run`: the configuration to be measured.

    Call it after dataset, model and optimizer are built and before the loader is: a measured
    trial starts at this call, so that all before it is paid for once. Nothing before it may start
    threads (a backward pass on a GPU, say); where something does, trials start afresh, slower.

    Args:
        path: A `best_config.yaml`.
        default: The settings that training has without tuning: the baseline.
        effective_batch_size: Samples per optimizer step that the training recipe asks for.
            Gradient accumulation then makes up what `batch_size` leaves, in every configuration,
            so that tuning changes the speed and nothing else.

    Raises:
        BadInputError: The file breaks a rule; the message names key, value and rule.
        ConfigError: The batch size does not divide `effective_batch_size`.

    Warns:
        MachineMismatchWarning: The file was tuned on a different machine.
    """
    if effective_batch_size is not None:
        default = default.with_effective_batch_size(effective_batch_size)
    if is_measured():
        config = become_trial(default, effective_batch_size).config
    elif path is not None and Path(path).exists():
        config = _read(Path(path))
        if effective_batch_size is not None:
            config = config.with_effective_batch_size(effective_batch_size)
    else:
        config = default
    config.apply_threads()
    return config


def steps(loader: Iterable[Batch], *, units: UnitCounter | None = None) -> Iterable[Batch]:
    """The batches of `loader`, for the loop to train on.

    In ordinary training this is `loader` itself: no cost at all. Under `autotune run` it times
    the loop on request, goes through the loader again and again, and never returns to the code
    after the loop.

    Args:
        loader: Anything that gives batches; usually a DataLoader.
        units: Counts what matters in a batch, where that is not the sample: tokens, frames. Its
            name names the unit (`def tokens(batch): return batch.numel()`). The search then
            maximises these per second.

    Raises:
        AutotuneError: Under `autotune run`, when `load_config` was not called before.
    """
    trial = current_trial()
    if trial is not None:
        return _MeasuredSteps(trial, loader, units)
    if is_measured():
        raise AutotuneError("autotune.load_config must be called before autotune.steps")
    return loader


def is_trial() -> bool:
    """Whether this process is being measured, and should write no checkpoints, logs or metrics."""
    return is_measured()


def _read(path: Path) -> ThroughputConfig:
    # Imported here: validation costs 0.2 s that training without a file need not pay.
    from autotune.best_config import read_best_config
    from autotune.machine import this_machine

    best = read_best_config(path)
    machine = this_machine()
    if best.machine.fingerprint != machine.fingerprint:
        warnings.warn(
            f"{path} was tuned on another machine ({best.machine.cpu}, "
            f"{best.machine.usable_cores} usable cores; here: {machine.cpu}, "
            f"{machine.usable_cores}): tune again with `{best.study.command}`",
            MachineMismatchWarning,
            stacklevel=3,
        )
    return best.config


class _MeasuredSteps(Generic[Batch]):
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
                    f"the loop left autotune.steps after {batches.num_taken} steps: give the "
                    "measured command more steps or epochs",
                )
            raise

    def _lead_in(self, batches: _Batches[Batch], limit_s: float) -> Iterator[Batch]:
        """Steps that are not counted, until the prefetch buffer is as it is in steady state.

        A pause fills the buffer. A loader that keeps up fills it again after a step; one that
        does not lets it run dry; between the two, the flow balance over the blocks corrects.
        """
        capacity = self._trial.config.num_prefetched
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
            size = _num_samples(batch) or self._trial.config.batch_size
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


def _num_samples(batch: object) -> int:
    """Length of the first dimension of the first tensor in a batch; 0 where there is none."""
    if isinstance(batch, Mapping):
        return _num_samples(next(iter(batch.values()), None))
    if isinstance(batch, (list, tuple)):
        return _num_samples(batch[0]) if batch else 0
    shape = getattr(batch, "shape", None)
    return int(shape[0]) if shape else 0


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
        lines.add((id(frame), frame.f_lineno))
        frame = frame.f_back
    return any(
        (id(candidate.tb_frame), candidate.tb_lineno) in lines
        for candidate in gc.get_objects()
        if isinstance(candidate, TracebackType)
    )
