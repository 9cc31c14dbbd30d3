"""The loop of a trial: its batches, endless, and timed whenever the coordinator asks."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Generic, TypeVar

from autotune.batches import Batches, count_samples
from autotune.blocks import Block, BlockMode, BlockRequest, Settling
from autotune.counters import CounterReader
from autotune.finite import FiniteWatch
from autotune.host import TrialProcess
from autotune.measurement import FailureCause

Batch = TypeVar("Batch")
UnitCounter = Callable[[Any], float]

# Warm-up only ever makes a loop faster. It is over with the first window of steps, at least so
# long, that is not faster than the one before by more than this.
_WINDOW_S = 0.1
_SPEED_UP = 0.03
# After a pause the scheduler may put a loop's threads on one core at first: of a loop that sleeps
# for 16 of its 20 ms, steps took up to 17 ms longer for 0.1 s, and were as before from then on;
# loops that compute all the time were as before after 0.05 s. It makes no difference to long steps.
_PLACEMENT_S, _LONG_STEP_S = 0.1, 0.5
# A loop that waits for more of the time than this waits for its loader; cores that are busy for
# more than this are what the loader waits for.
_WAITING_SHARE, _SATURATED_SHARE = 0.05, 0.8


class MeasuredSteps(Generic[Batch]):
    """The loop's batches in a trial: endless, and timed whenever the coordinator asks."""

    def __init__(
        self, trial: TrialProcess, loader: Iterable[Batch], units: UnitCounter | None
    ) -> None:
        self._trial = trial
        self._loader = loader
        self._units = units
        self._step_s = 0.0
        self._least_lead_in = 0

    def __len__(self) -> int:
        if isinstance(self._loader, Sized):
            return len(self._loader)
        raise TypeError(f"{type(self._loader).__name__} has no length")

    def __iter__(self) -> Iterator[Batch]:
        batches = Batches(self._trial, self._loader)
        if self._trial.rank > 0:
            # Only the first rank is timed; the others follow it through their collectives.
            while True:
                yield batches.take()
        self._counters = CounterReader(self._trial.root_pid)
        self._finite = FiniteWatch()
        try:
            self._trial.send(
                type="ready",
                unit=_unit_name(self._units),
                steps_per_epoch=batches.steps_per_epoch,
            )
            while True:
                message = self._trial.receive()
                request = BlockRequest(**{**message, "mode": BlockMode(message["mode"])})
                answer = yield from self._answer(batches, request)
                self._trial.send(
                    type="blocks", device_memory_bytes=_device_memory_bytes(), **answer
                )
        except GeneratorExit:
            if not _is_unwinding(sys._getframe(1)):
                self._trial.end(
                    FailureCause.LOOP_ENDED,
                    f"the loop left autotune.steps after {batches.num_taken} steps: let it run "
                    "on where autotune.is_trial(), or give the command more steps",
                )
            raise

    def _answer(
        self, batches: Batches[Batch], request: BlockRequest
    ) -> Generator[Batch, None, dict[str, Any]]:
        self._counters.find_processes()
        answer: dict[str, Any] = {"blocks": []}
        if request.mode is BlockMode.CHECK:
            answer["finite"] = self._finite.all_finite()
            return answer
        if request.mode is BlockMode.EPOCH:
            answer["epoch_start_s"] = batches.begin_epoch(request.min_s)
            return answer
        if request.mode is BlockMode.LOAD:
            batches.discard_ready()
            # The loop is given nothing: all its batches are taken here.
            for _ in self._blocks(batches, batches.take, request, answer):
                pass
            return answer
        if request.mode is BlockMode.COMPUTE:
            with batches.held() as held:
                yield from self._lead_in(held.__next__)
                yield from self._blocks(batches, held.__next__, request, answer)
            return answer
        if request.settle_s:
            settling = yield from self._settle(batches, request)
            answer["settling"] = dataclasses.asdict(settling)
        else:
            yield from self._lead_in(batches.take, self._least_lead_in)
        yield from self._blocks(batches, batches.take, request, answer)
        return answer

    def _settle(
        self, batches: Batches[Batch], request: BlockRequest
    ) -> Generator[Batch, None, Settling]:
        """Steps that are not counted, until the loop is as it will be for good.

        The first steps pay for lazy initialisation, caches for new shapes and a growing
        allocator. They also leave the workers time to fill their buffer: where it is seen to
        empty again, what is left in it is thrown away, since a loader that cannot keep up has no
        buffer in its steady state.
        """
        start_s = time.monotonic()
        first = batches.take()
        first_batch_at_s = time.monotonic()
        yield first
        num_taken, num_discarded = batches.num_taken - 1, 0
        window = dataclasses.replace(request, min_s=_WINDOW_S, cut_s=request.settle_s)
        previous = 0.0
        while True:
            block = yield from self._block(batches, batches.take, window)
            emptying = block.ready_change < -self._trial.config.num_workers
            if emptying:
                num_discarded += batches.discard_ready()
            # A loop so slow that there is time for one window only cannot be told to get faster.
            faster = 0 < previous < block.units_per_s / (1 + _SPEED_UP)
            first_window, previous = previous == 0, block.units_per_s
            settled = not emptying and not faster
            late = time.monotonic() - start_s > request.settle_s
            if late or (settled and not first_window):
                break
        return Settling(
            num_steps=batches.num_taken - num_taken - num_discarded,
            duration_s=time.monotonic() - start_s,
            first_batch_at_s=first_batch_at_s,
            step_s=self._step_s,
            settled=settled,
            num_discarded=num_discarded,
        )

    def _blocks(
        self,
        batches: Batches[Batch],
        take: Callable[[], Batch],
        request: BlockRequest,
        answer: dict[str, Any],
    ) -> Iterator[Batch]:
        """Time the blocks asked for, each with what was used meanwhile, into `answer`."""
        before = self._counters.read()
        for _ in range(request.num_blocks):
            block = yield from self._block(batches, take, request)
            after = self._counters.read()
            used = self._counters.used_between(before, after)
            answer["blocks"].append({**dataclasses.asdict(block), **used})
            before = after
        if answer["blocks"]:
            self._least_lead_in = self._num_restarting(Block(**answer["blocks"][-1]))

    def _lead_in(self, take: Callable[[], Batch], least: int = 1) -> Iterator[Batch]:
        """Steps after a pause, `least` of them at least, that are not counted."""
        start_s = time.monotonic()
        num_steps = 0
        while num_steps < least or (
            self._step_s < _LONG_STEP_S and time.monotonic() - start_s < _PLACEMENT_S
        ):
            yield take()
            num_steps += 1

    def _num_restarting(self, last: Block) -> int:
        """Batches after the pause that follows a block that may be faster than they should.

        What a stopped worker waits for, a disk or a network, goes on: it comes back with an item
        half done. So where the loop waits for workers that wait themselves, each delivers a batch
        before the next block.
        """
        waits = last.wait_s > _WAITING_SHARE * last.duration_s
        saturated = last.cpu_s > _SATURATED_SHARE * last.capacity_cores * last.duration_s
        return self._trial.config.num_workers if waits and not saturated else 0

    def _count_units(self, batch: Batch) -> float:
        assert self._units is not None
        found = self._units(batch)
        if found is None or isinstance(found, str):
            self._trial.end(
                FailureCause.CRASHED,
                f"the function given as units to autotune.steps must give a number, not {found!r}",
            )
        return found

    def _block(
        self, batches: Batches[Batch], take: Callable[[], Batch], request: BlockRequest
    ) -> Generator[Batch, None, Block]:
        """Time steps until their duration and number are as asked for."""
        num_steps = num_samples = 0
        num_units = wait_s = wait_cpu_s = 0.0
        _synchronise()
        num_ready = batches.num_ready()
        num_ends, ends_s = batches.num_epoch_ends, batches.epoch_end_s
        start_s = asked_s = time.monotonic()
        while True:
            asked_cpu_s = time.process_time()
            batch = take()
            got_s = time.monotonic()
            wait_s += got_s - asked_s
            wait_cpu_s += time.process_time() - asked_cpu_s
            size = count_samples(batch, self._trial.config.batch_size)
            num_samples += size
            num_units += self._count_units(batch) if self._units else size
            yield batch
            num_steps += 1
            asked_s = time.monotonic()
            elapsed_s = asked_s - start_s
            whole = num_steps % request.multiple_of == 0
            late = request.cut_s is not None and elapsed_s >= request.cut_s
            if elapsed_s >= request.min_s and (whole or late):
                break
        _synchronise()
        duration_s = time.monotonic() - start_s
        self._step_s = duration_s / num_steps
        if not 0 < num_units < math.inf:
            self._trial.end(
                FailureCause.CRASHED,
                f"the units given to autotune.steps add up to {num_units:g} in {num_steps} steps: "
                "they must be above 0 and finite",
            )
        return Block(
            num_steps=num_steps,
            num_samples=num_samples,
            num_units=float(num_units),
            duration_s=duration_s,
            wait_s=wait_s,
            wait_cpu_s=wait_cpu_s,
            ready_change=batches.num_ready() - num_ready,
            num_epoch_ends=batches.num_epoch_ends - num_ends,
            epoch_end_s=batches.epoch_end_s - ends_s,
        )


def _unit_name(units: UnitCounter | None) -> str | None:
    """A function's name names the unit; a lambda has none worth showing."""
    if units is None:
        return None
    name = getattr(units, "__name__", "")
    return name if name.isidentifier() else "units"


def _synchronise() -> None:
    """Wait for the GPU, at the edges of blocks only; nothing where there is none in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _device_memory_bytes() -> int | None:
    """Peak memory that torch reserved on the GPU; None where none is in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_reserved())


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
