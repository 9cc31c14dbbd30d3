"""The training loop, fed batch by batch, and timed whenever the coordinator asks."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import resource
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from autotune.blocks import Block, BlockMode, BlockRequest, DeviceMemory, LoopFacts, Settling
from autotune.config import ThroughputConfig
from autotune.instrument.accelerator import Accelerator, StallClock, num_compiled
from autotune.instrument.batch_source import END, BatchSource
from autotune.instrument.copies import CopyWatch
from autotune.instrument.fork_server import TrialProcess
from autotune.instrument.optimizer_watch import OptimizerWatch
from autotune.instrument.revisit import revisit
from autotune.instrument.swap import forget_peak_memory, swap_settings
from autotune.measurement import FailureCause
from autotune.system.counters import CounterReader

# Warm-up only ever makes a loop faster. It is over with the first window of steps, at least so
# long, that is not faster than the one before by more than this.
_WINDOW_S = 0.1
_SPEED_UP = 0.03
# After a pause the scheduler may put a loop's threads on one core at first: of a loop that sleeps
# for 16 of its 20 ms, steps took up to 17 ms longer for 0.1 s, and were as before from then on;
# loops that compute all the time were as before after 0.05 s. It makes no difference to long steps.
PLACEMENT_S, LONG_STEP_S = 0.1, 0.5
# In warm-up, so many windows in which something is compiled are not part of its time; a loop that
# compiles for ever is not waited for.
_MOST_COMPILING = 16
# Steps in which it is looked at what a loop copies.
_NUM_WATCHED = 4
# A loop that waits for more of the time than this waits for its loader; cores that are busy for
# more than this are what the loader waits for.
_WAITING_SHARE, _SATURATED_SHARE = 0.05, 0.8


class LoopEndedError(Exception):
    """The loop takes no more batches; raised where it last took one."""


@dataclasses.dataclass(slots=True)
class Tally:
    """What a block has counted so far."""

    num_steps: int = 0
    num_samples: int = 0
    num_units: float = 0.0
    num_updates: int = 0
    wait_s: float = 0.0
    wait_cpu_s: float = 0.0


@dataclasses.dataclass(slots=True, kw_only=True)
class Run:
    """A run of steps that are being counted, and how things were when it began."""

    clock: StallClock | None
    num_compiled: int
    source: BatchSource
    num_ready: int
    num_epoch_ends: int
    epoch_end_s: float
    updates: Mapping[Any, int]
    start_s: float
    own_cpu_s: float
    num_page_faults: int
    asked_s: float
    num_lost: int = 0
    tally: Tally = dataclasses.field(default_factory=Tally)


class TimedLoop:
    """Feeds one training loop, and times it on request.

    What the loop does outside of its steps (an evaluation, the end of an epoch that it chose by
    itself) is told to `pause_since`, and is not counted.

    Attributes:
        source: Where its batches come from.
        followers: Sources of other loaders that feed the same step.
        first_batch_at_s: Monotonic time at which the loop got its first batch.
        is_left: Whether the script has left it: who asks for a batch is given none any more.

    Args:
        trial: The line to the coordinator.
        watch: Sees the optimizer steps.
        count: Samples and units in the batch taken last.
        facts: What to say of the loop, once its first batches were seen.
    """

    def __init__(
        self,
        trial: TrialProcess,
        watch: OptimizerWatch,
        *,
        count: Callable[[Any], tuple[int, float]],
        facts: Callable[[], LoopFacts],
    ) -> None:
        self.source: BatchSource
        self.followers: list[BatchSource] = []
        self.first_batch_at_s: float | None = None
        self.is_left = False
        self._trial = trial
        self._watch = watch
        self._count = count
        self._facts = facts
        self._device = Accelerator()
        self._num_fed = 0
        self._step_s = 0.0
        self._least_lead_in = 0
        self._paused_s = 0.0
        self._follower_wait_s = 0.0
        self._has_lost_step = False

    def pause_since(self, start_s: float, *, lost_step: bool = False) -> None:
        """Leave out the time since then.

        Args:
            start_s: Monotonic time.
            lost_step: Whether the step that ended in it is not counted either, since nobody knows
                when it ended.
        """
        self._paused_s += time.monotonic() - start_s
        self._has_lost_step |= lost_step

    def pause_s(self, seconds: float) -> None:
        """Leave out so many seconds of the time since the last batch was given."""
        self._paused_s += seconds

    def wait_for_follower(self, seconds: float) -> None:
        """Take a wait for another loader of the same step into account."""
        self._follower_wait_s += seconds

    def batches(self) -> Generator[Any, None, None]:
        """The loop's batches, endless; END where the data is used up."""
        self._counters = CounterReader(self._trial.root_pid)
        self._check_data()
        self._say_ready()
        while True:
            message = self._trial.receive()
            if message["mode"] == BlockMode.SWAP:
                self._swap(ThroughputConfig(**message["config"]))
                continue
            request = BlockRequest(**{**message, "mode": BlockMode(message["mode"])})
            answer: dict[str, Any] = {"blocks": []}
            try:
                yield from self._answer(request, answer)
            except LoopEndedError:
                self._send(answer, life_steps=self._num_fed)
                self._stand_still()
            self._send(answer)

    def _swap(self, config: ThroughputConfig) -> None:
        """Go on with another configuration of the same batch, as if the loop had just begun."""
        self._device.synchronise()
        swap_settings(self.source.loader, config)
        self._trial.config = config
        config.apply_to_process()
        forget_peak_memory()
        self.source.restart()
        self.source.peek()
        self.first_batch_at_s = time.monotonic()
        self._say_ready()

    def _say_ready(self) -> None:
        self._trial.send(
            type="ready",
            facts=dataclasses.asdict(self._facts()),
            first_batch_at_s=self.first_batch_at_s,
        )

    def _send(self, answer: dict[str, Any], **more: Any) -> None:  # noqa: ANN401
        devices = [dataclasses.asdict(memory) for memory in self._memory()]
        self._trial.send(type="blocks", devices=devices, **answer, **more)

    def _check_data(self) -> None:
        if self.source.peek() is END:
            self._trial.end(
                FailureCause.NO_DATA,
                "the loader delivered no batch: is the dataset "
                "empty, or smaller than a batch with drop_last?",
            )
        if self.first_batch_at_s is None:
            self.first_batch_at_s = time.monotonic()

    def _tell(self, do: str, **what: Any) -> None:  # noqa: ANN401
        """Have all other ranks do something that this one is about to do."""

    def _num_unwatched(self, do: str, request: BlockRequest, tally: Tally, elapsed_s: float) -> int:
        """How many batches to take until the clock is looked at, which all ranks take together."""
        return 1

    def _together(self, block: Block) -> Block:
        """What all ranks did in a block, from what this one did."""
        return block

    def _memory(self) -> Sequence[DeviceMemory]:
        return self._device.memory()

    def _stand_still(self) -> NoReturn:
        """Wait to be ended by the coordinator: what follows the loop must not run."""
        while True:
            answer: dict[str, Any] = {"blocks": []}
            if self._trial.receive()["mode"] == BlockMode.CHECK:
                answer["finite"] = self._watch.all_finite()
            self._send(answer, life_steps=self._num_fed)

    def _take(self) -> Any:  # noqa: ANN401
        if self.is_left:
            raise LoopEndedError
        batch = self.source.take()
        if batch is END:
            raise LoopEndedError
        self._num_fed += 1
        return batch

    def _answer(self, request: BlockRequest, answer: dict[str, Any]) -> Generator[Any, None, None]:
        self._tell("look")
        self._counters.find_processes()
        self._device.look()
        if request.mode is BlockMode.CHECK:
            answer["finite"] = self._watch.all_finite()
        elif request.mode is BlockMode.REVISIT:
            found = revisit(self.source.loader)
            answer["revisit"] = None if found is None else dataclasses.asdict(found)
        elif request.mode is BlockMode.COPY:
            answer["copy_s"] = yield from self._copy_s()
        elif request.mode is BlockMode.EPOCH:
            capacity = self._trial.config.num_prefetched
            answer["epoch_start_s"] = self._epoch_start_s(capacity, request.min_s)
        elif request.mode is BlockMode.LOAD:
            self._tell("empty")
            self.source.discard_ready()
            self.source.drain()
            # The loop is given nothing: all its batches are taken here.
            for _ in self._blocks(self._take_all, request, answer, do="load"):
                pass
        elif request.mode is BlockMode.COMPUTE:
            with self._alone():
                yield from self._lead_in()
                yield from self._blocks(self._take, request, answer)
        else:
            if request.settle_s:
                yield from self._settle(request, answer)
            else:
                yield from self._lead_in(self._least_lead_in)
            yield from self._blocks(self._take, request, answer)

    def _copy_s(self) -> Generator[Any, None, float | None]:
        """Seconds that copies to a GPU keep the loop waiting for, in a step."""
        if not self._device.is_used:
            return None
        watch = CopyWatch(self._device.num_allocations)
        yield from self._lead_in()
        self._tell("steps", number=_NUM_WATCHED)
        for _ in range(_NUM_WATCHED):
            batch = self._take()
            with watch.watching():
                yield batch
        return watch.copy_s / _NUM_WATCHED

    def _take_all(self) -> Any:  # noqa: ANN401
        """A batch of each loader that feeds a step; gives that of the first."""
        for follower in self.followers:
            follower.take()
        return self._take()

    def _epoch_start_s(self, capacity: int, limit_s: float) -> float | None:
        return self.source.begin_epoch(capacity, limit_s)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The step by itself: loaders stand still, and a few batches are repeated."""
        self._tell("hold")
        with contextlib.ExitStack() as stack:
            for source in (self.source, *self.followers):
                stack.enter_context(source.held())
            yield
        self._tell("release")

    def _settle(self, request: BlockRequest, answer: dict[str, Any]) -> Generator[Any, None, None]:
        """Steps that are not counted, until the loop is as it will be for good.

        The first steps pay for lazy initialisation, caches for new shapes and a growing
        allocator. They also leave the workers time to fill their buffer: where it is seen to
        empty again, what is left in it is thrown away, since a loader that cannot keep up has no
        buffer in its steady state.

        Steps in which something is compiled are not part of the time given, nor is the first one
        of all on a device, which loads its libraries. Where one step is to be enough, what the
        workers have ready is left as it is.
        """
        start_s = begun_s = time.monotonic()
        compiled = num_compiled()
        num_taken = self.source.num_taken
        num_discarded, num_steps, num_updates, num_compiling = 0, 1, 0, 0
        window = dataclasses.replace(request, min_s=_WINDOW_S, cut_s=request.settle_s)
        if request.settle_steps is not None:
            window = dataclasses.replace(
                window, min_s=0.0, multiple_of=max(1, request.settle_steps // 2)
            )
        previous = 0.0
        settled = False
        try:
            self._tell("steps", number=1)
            yield self._take()
            if num_compiled() or self._device.is_used:
                self._device.synchronise()
                begun_s = time.monotonic()
            self._tell("drain")
            num_discarded += self.source.drain()
            if request.settle_steps == 1:
                self._step_s, settled = time.monotonic() - start_s, True
                return
            while True:
                block = yield from self._block(self._take, window)
                num_steps += block.num_steps
                num_updates += block.num_updates
                if block.num_compiled and num_compiling < _MOST_COMPILING:
                    num_compiling += 1
                    begun_s, previous = time.monotonic(), 0.0
                    continue
                emptying = block.ready_change < -self._trial.config.num_workers
                if emptying:
                    self._tell("discard")
                    num_discarded += self.source.discard_ready()
                # A loop so slow that there is time for one window only cannot be told to get
                # faster.
                faster = 0 < previous < block.units_per_s / (1 + _SPEED_UP)
                first_window, previous = previous == 0, block.units_per_s
                settled = not emptying and not faster
                late = time.monotonic() - begun_s > request.settle_s
                if request.settle_steps is not None:
                    late |= num_steps >= request.settle_steps
                if late or (settled and not first_window):
                    break
        finally:
            answer["settling"] = dataclasses.asdict(
                Settling(
                    num_steps=max(1, self.source.num_taken - num_taken - num_discarded),
                    duration_s=time.monotonic() - start_s,
                    step_s=self._step_s,
                    settled=settled,
                    num_discarded=num_discarded,
                    num_compiled=num_compiled() - compiled,
                    steps_per_update=round((num_steps - 1) / num_updates)
                    if num_updates > 1
                    else None,
                )
            )

    def _blocks(
        self,
        take: Callable[[], Any],
        request: BlockRequest,
        answer: dict[str, Any],
        do: str = "steps",
    ) -> Iterator[Any]:
        """Time the blocks asked for, each with what was used meanwhile, into `answer`."""
        before, whole = self._counters.read(), []
        for _ in range(request.num_blocks):
            found: list[Block] = []
            try:
                yield from self._block(take, request, found, do)
            finally:
                # Of a loop that ends, what there was of the block.
                after = self._counters.read()
                used = self._counters.used_between(before, after)
                whole = [self._together(dataclasses.replace(one, **used)) for one in found]
                answer["blocks"] += map(dataclasses.asdict, whole)
                # What the ranks told each other meanwhile is no part of the next block.
                before = self._counters.read() if self._trial.link else after
        if whole:
            self._least_lead_in = self._num_restarting(whole[-1])

    def _lead_in(self, least: int = 1) -> Iterator[Any]:
        """Steps after a pause, `least` of them at least, that are not counted."""
        start_s = time.monotonic()
        num_steps = 0
        while num_steps < least or (
            self._step_s < LONG_STEP_S and time.monotonic() - start_s < PLACEMENT_S
        ):
            yield self._take()
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

    def _block(
        self,
        take: Callable[[], Any],
        request: BlockRequest,
        found: list[Block] | None = None,
        do: str = "steps",
    ) -> Generator[Any, None, Block]:
        """Time steps until their duration and number are as asked for.

        Args:
            take: Gives a batch.
            request: What is asked for.
            found: Gets the block, also where the loop ends within it.
            do: What the ranks do together, to which `take` belongs.
        """
        run = self._begin_run()
        elapsed_s = 0.0
        try:
            while True:
                for _ in range(self._num_unwatched(do, request, run.tally, elapsed_s)):
                    yield from self._step(take, run)
                tally = run.tally
                elapsed_s = time.monotonic() - run.start_s - self._paused_s
                whole = tally.num_steps % request.multiple_of == 0 and tally.num_steps > 0
                late = request.cut_s is not None and elapsed_s >= request.cut_s
                if elapsed_s >= request.min_s and (whole or (late and tally.num_steps)):
                    break
        except LoopEndedError:
            if run.tally.num_steps and found is not None:
                found.append(self._finish(run))
            raise
        block = self._finish(run)
        if found is None:
            return self._together(block)
        found.append(block)
        return block

    def _begin_run(self) -> Run:
        """Begin to count steps."""
        self._device.synchronise()
        clock = self._device.stall_clock()
        if clock is not None:
            clock.begin(self._step_s)
        self._paused_s = self._follower_wait_s = 0.0
        now_s = time.monotonic()
        return Run(
            clock=clock,
            num_compiled=num_compiled(),
            source=self.source,
            num_ready=self.source.num_ready(),
            num_epoch_ends=self.source.num_epoch_ends,
            epoch_end_s=self.source.epoch_end_s,
            updates=self._watch.counts(),
            start_s=now_s,
            own_cpu_s=time.process_time(),
            num_page_faults=_num_page_faults(),
            asked_s=now_s,
        )

    def _step(self, take: Callable[[], Any], run: Run) -> Generator[Any, None, None]:
        """One step, counted unless nobody knows when it ended."""
        tally, clock = run.tally, run.clock
        asked_cpu_s = time.process_time()
        if clock is not None:
            clock.ask()
        batch = take()
        got_s = time.monotonic()
        if clock is not None:
            clock.get()
        wait_s, wait_cpu_s = got_s - run.asked_s, time.process_time() - asked_cpu_s
        num_samples, num_units = self._count(batch)
        num_before = self._watch.updates_since(run.updates)
        self._has_lost_step = False
        yield batch
        run.asked_s = time.monotonic()
        num_updates = self._watch.updates_since(run.updates)
        if self._has_lost_step:
            run.num_lost += num_updates - num_before
            return
        tally.num_updates = num_updates - run.num_lost
        tally.num_steps += 1
        tally.num_samples += num_samples
        tally.num_units += num_units
        tally.wait_s += wait_s
        tally.wait_cpu_s += wait_cpu_s

    def _finish(self, run: Run) -> Block:
        """What was counted since the run began; of at least one step."""
        self._device.synchronise()
        tally, source = run.tally, self.source
        same = source is run.source
        duration_s = max(time.monotonic() - run.start_s - self._paused_s, 1e-9)
        self._step_s = duration_s / tally.num_steps
        # Where units are tensors on a GPU, these are waited for only here.
        num_units = float(tally.num_units)
        if not 0 < num_units < math.inf:
            self._trial.end(
                FailureCause.CRASHED,
                f"the units given to autotune.steps add up to {num_units:g} in "
                f"{tally.num_steps} steps: they must be above 0 and finite",
            )
        return Block(
            num_steps=tally.num_steps,
            num_samples=max(1, tally.num_samples),
            num_units=num_units,
            num_updates=tally.num_updates,
            duration_s=duration_s,
            wait_s=min(duration_s, tally.wait_s + self._follower_wait_s),
            own_cpu_s=time.process_time() - run.own_cpu_s,
            num_page_faults=_num_page_faults() - run.num_page_faults,
            wait_cpu_s=tally.wait_cpu_s,
            stall_s=None if run.clock is None else run.clock.stalled_s(),
            num_compiled=num_compiled() - run.num_compiled,
            ready_change=source.num_ready() - run.num_ready,
            num_epoch_ends=source.num_epoch_ends - (run.num_epoch_ends if same else 0),
            epoch_end_s=source.epoch_end_s - (run.epoch_end_s if same else 0.0),
        )


def _num_page_faults() -> int:
    """Of this process, those without a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
