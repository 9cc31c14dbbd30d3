"""Training loops of several ranks, which take their steps together.

All ranks take the same number of batches, since their optimizer steps wait for each other. So the
rank that leads says how many come next, and each reports what it did with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import os
import socket
from collections.abc import Generator, Sequence
from typing import Any

import psutil

from autotune.blocks import Block, BlockRequest, DeviceMemory, RankUse
from autotune.instrument.batch_source import BatchSource
from autotune.instrument.rank_link import RankFailedError, RankLink
from autotune.instrument.timed_loop import (
    LONG_STEP_S,
    PLACEMENT_S,
    LoopEndedError,
    Run,
    Tally,
    TimedLoop,
)
from autotune.ipc.channel import Message
from autotune.system.counters import CounterReader

# What a block keeps of each rank, it keeps for so many.
_MOST_RANKS = 64
# What others did to a machine, of which the worst counts where there are several.
_OF_MACHINES = ("other_cpu_s", "stolen_s", "throttled_s", "pressure_s", "suspended_s")


class LeadingLoop(TimedLoop):
    """The loop of the rank that answers the coordinator."""

    # What the other ranks said of their devices.
    _devices: tuple[DeviceMemory, ...] = ()
    # Steps of the last run.
    _num_before = 1

    @property
    def _link(self) -> RankLink:
        assert self._trial.link is not None
        return self._trial.link

    def _say_ready(self) -> None:
        # The others report that they are, too.
        self._reports()
        super()._say_ready()

    def _tell(self, do: str, **what: Any) -> None:  # noqa: ANN401
        self._link.order(do=do, **what)

    def _begin_run(self) -> Run:
        self._tell("count")
        return super()._begin_run()

    def _num_unwatched(self, do: str, request: BlockRequest, tally: Tally, elapsed_s: float) -> int:
        step_s = elapsed_s / tally.num_steps if tally.num_steps else self._step_s
        # How fast the loader is by itself, the steps before do not tell.
        is_unknown = not step_s or (do == "load" and not tally.num_steps)
        number = 1
        if not is_unknown:
            number = math.ceil(max(0.0, request.min_s - elapsed_s) / step_s)
            # A few steps that were quick say little of many.
            number = max(1, min(number, tally.num_steps or 2 * self._num_before))
            # A step of which nobody knows when it ended is not counted.
            number += -(tally.num_steps + number) % request.multiple_of
            if request.cut_s is not None:
                number = max(1, min(number, int((request.cut_s - elapsed_s) / step_s)))
        self._tell(do, number=number)
        return number

    def _lead_in(self, least: int = 1) -> Generator[Any, None, None]:
        number = least
        if 0 < self._step_s < LONG_STEP_S:
            number = max(least, math.ceil(PLACEMENT_S / self._step_s))
        self._tell("steps", number=number)
        for _ in range(number):
            yield self._take()

    def _epoch_start_s(self, capacity: int, limit_s: float) -> float | None:
        self._tell("epoch", capacity=capacity, limit_s=limit_s)
        own = super()._epoch_start_s(capacity, limit_s)
        found = [own, *(report["epoch_start_s"] for report in self._reports())]
        return None if None in found else max(filter(None, found))

    def _together(self, block: Block) -> Block:
        self._num_before = block.num_steps
        self._tell("report")
        reports = self._reports()
        self._devices = tuple(
            DeviceMemory(**memory) for report in reports for memory in report["devices"]
        )
        found = [report for report in reports if report["block"]]
        others = [Block(**report["block"]) for report in found]
        paused_s = [self._paused_s, *(report["paused_s"] for report in found)]
        own = rank_use(self._link, block)
        ranks = sorted(
            (own, *(RankUse(**report["use"]) for report in reports if report["use"])),
            key=lambda use: -use.wait_s / use.duration_s,
        )
        return combined(block, others, paused_s=paused_s, ranks=tuple(ranks[:_MOST_RANKS]))

    def _send(self, answer: dict[str, Any], **more: Any) -> None:  # noqa: ANN401
        if self._link.remote:
            self._tell("pause")
        super()._send(answer, **more)

    def _memory(self) -> Sequence[DeviceMemory]:
        return (*super()._memory(), *self._devices)

    def _reports(self) -> list[Message]:
        try:
            return self._link.reports()
        except RankFailedError as error:
            self._trial.pass_on(error.message)


class FollowingLoop(TimedLoop):
    """The loop of a rank that does what the leading one orders."""

    @property
    def _link(self) -> RankLink:
        assert self._trial.link is not None
        return self._trial.link

    def batches(self) -> Generator[Any, None, None]:
        """The loop's batches, as many as are ordered at a time."""
        self._check_data()
        self._facts()
        self._run: Run | None = None
        self._has_ended = False
        self._holding = contextlib.ExitStack()
        # Of what others do to a machine, its first rank tells, where nobody else does.
        tells = self._trial.place.rank in self._link.remote and os.environ.get("LOCAL_RANK") == "0"
        self._meter = CounterReader(self._trial.root_pid) if tells else None
        self._before: Any = None
        self._link.report(type="ready")
        while True:
            order = self._next_order()
            if self._has_ended and order["do"] != "report":
                continue
            try:
                yield from self._obey(order)
            except LoopEndedError:
                self._has_ended = True

    def _sources(self) -> tuple[BatchSource, ...]:
        """Where batches come from; those of another machine are nobody's to watch."""
        sources = (self.source, *self.followers)
        for source in sources:
            source.is_watched = self._link.rank not in self._link.remote
        return sources

    def _obey(self, order: Message) -> Generator[Any, None, None]:
        do = order["do"]
        if do == "steps":
            for _ in range(order["number"]):
                yield from self._step(self._take, self._the_run())
        elif do == "load":
            for _ in range(order["number"]):
                for _ in self._step(self._take_all, self._the_run()):
                    pass
        elif do == "report":
            self._report()
        elif do == "count":
            self._run = None
        elif do == "look":
            self._device.look()
            if self._meter is not None:
                self._meter.find_processes()
        elif do == "hold":
            for source in self._sources():
                self._holding.enter_context(source.held())
        elif do == "release":
            self._holding.close()
        elif do in ("discard", "empty"):
            self.source.discard_ready()
        if do in ("drain", "empty"):
            self.source.drain()
        if do == "epoch":
            found = self._epoch_start_s(order["capacity"], order["limit_s"])
            self._link.report(epoch_start_s=found)

    def _the_run(self) -> Run:
        if self._run is None:
            self._run = self._begin_run()
            if self._meter is not None:
                self._before = self._meter.read()
        return self._run

    def _report(self) -> None:
        """Tell what was done since the last report."""
        run, self._run = self._run, None
        found: dict[str, Any] = {"block": None, "use": None}
        if run is not None and run.tally.num_steps:
            block = self._finish(run)
            if self._meter is not None:
                used = self._meter.used_between(self._before, self._meter.read())
                block = dataclasses.replace(block, **{name: used[name] for name in _OF_MACHINES})
            use = rank_use(self._link, block)
            found = {
                "block": dataclasses.asdict(block),
                "use": dataclasses.asdict(use),
                "paused_s": self._paused_s,
            }
        devices = [dataclasses.asdict(memory) for memory in self._memory()]
        self._link.report(**found, devices=devices)

    def _next_order(self) -> Message:
        order = self._trial.next_order()
        if order["do"] != "pause":
            return order
        # Nobody else stops the workers of this machine while nothing is measured.
        with contextlib.ExitStack() as stack:
            for source in self._sources():
                stack.enter_context(source.stopped())
            return self._trial.next_order()


def rank_use(link: RankLink, block: Block) -> RankUse:
    """What this rank did in a block."""
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    memory = 0
    for pid in (os.getpid(), *workers):
        with contextlib.suppress(psutil.Error):
            memory += psutil.Process(pid).memory_info().rss
    return RankUse(
        rank=link.rank,
        host=socket.gethostname(),
        duration_s=block.duration_s,
        wait_s=block.wait_s,
        cpu_s=block.own_cpu_s,
        memory_bytes=memory,
        ready_change=block.ready_change,
    )


def combined(
    own: Block,
    others: Sequence[Block],
    *,
    paused_s: Sequence[float],
    ranks: tuple[RankUse, ...],
) -> Block:
    """A block of all ranks: what they did together in the time of the slowest.

    Args:
        own: Of the rank that leads; its CPU seconds are those of its whole machine.
        others: Of the other ranks.
        paused_s: What each, in this order, spent outside of its steps, an evaluation say. It is no
            part of its own duration; the others may have waited for it in theirs.
        ranks: What each did.
    """
    every = (own, *others)
    whole_s = max(block.duration_s + more for block, more in zip(every, paused_s, strict=True))
    quickest_s = min(block.duration_s for block in every)
    worst: dict[str, Any] = {
        name: max(getattr(block, name) for block in every) for name in _OF_MACHINES
    }
    stalls = [block.stall_s for block in every if block.stall_s is not None]
    return dataclasses.replace(
        own,
        num_samples=sum(block.num_samples for block in every),
        num_units=sum(block.num_units for block in every),
        duration_s=max(quickest_s, whole_s - max(paused_s)),
        wait_s=max(block.wait_s for block in every),
        wait_cpu_s=max(block.wait_cpu_s for block in every),
        stall_s=max(stalls) if stalls else None,
        # Of the rank that its loader holds back most, and with it all others.
        ready_change=max(every, key=lambda block: block.wait_s).ready_change,
        num_epoch_ends=max(block.num_epoch_ends for block in every),
        epoch_end_s=max(block.epoch_end_s for block in every),
        num_compiled=max(block.num_compiled for block in every),
        **worst,
        ranks=ranks,
    )
