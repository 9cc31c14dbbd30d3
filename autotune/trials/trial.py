"""One running trial: asked for blocks, watched while it gives them, ended with its whole group."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, NoReturn, Self, TypeVar

from pydantic import Field

from autotune.blocks import (
    Block,
    BlockMode,
    BlockRequest,
    DeviceMemory,
    LoopFacts,
    Revisit,
    Sample,
    Settling,
)
from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError, BadInputError
from autotune.ipc.channel import Channel, ChannelClosedError, Message
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.system.clock import unix_s
from autotune.system.machine import this_machine
from autotune.system.memory import OomWatch, TreeMemory, memory_left_bytes
from autotune.trials.failures import describe_exception, describe_exit, describe_hang
from autotune.trials.watchdog import remove_left_files
from autotune.validation import validate

MAX_OUTPUT_LINES = 80
# How long a trial that reported an exception may take to print its traceback.
_TRACEBACK_DEADLINE_S = 5.0
# While a trial runs, the machine's memory is looked at so often (0.4 ms each time, and never in a
# block that is shorter), and is not used up to the last of so large a share of it.
_LOOK_S = 1.0
# What Python adds to the stacks that it prints at a signal and to lines of a traceback, its own
# frames that import a module, and what resource trackers say when they unlink what an ended trial
# left.
_NO_NEWS = re.compile(
    r"Extension modules: |\s*[~^]+$|\s*File \"<frozen "
    r"|.*resource_tracker: There appear|  warnings\.warn\(.resource_tracker: "
)
_MEMORY_RESERVE = 0.03


class TrialFailedError(AutotuneError):
    """A trial failed in an expected way; `failure` is what to record."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    def explain(self, what: str) -> str:
        """What failed and why, followed by the end of what it printed."""
        text = f"{what} failed: {self.failure.cause}: {self.failure.message}"
        output = self.failure.output
        return f"{text}\n\nIts last output:\n{output}" if output else text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialOrigin:
    """How a trial came to be: what its owner needs to watch it and to end it.

    Attributes:
        root_pid: Process whose tree is measured.
        groups: Process groups of that tree that are stopped while nothing is measured.
        followers: Of a job of several ranks, those that follow the leading one, by rank, and their
            connections.
        requested_at_s: Monotonic time at which the start was asked for.
        output: File that holds what the trial prints.
        notes: File in which it notes what its steps leave in the file system.
        oom: Began when the start was asked for.
        find_fault: Tells what is wrong with how it was started, if that shows only now.
        abort: Has the processes of the trial print where they stand, and end.
        end: Ends the trial's group, after so many seconds in which it may still end by itself;
            gives the exit code of a leader that ended by itself.
    """

    root_pid: int
    groups: frozenset[int]
    requested_at_s: float
    output: Path
    notes: Path
    oom: OomWatch
    find_fault: Callable[[], Failure | None]
    abort: Callable[[], None]
    end: Callable[[float], int | None]
    followers: tuple[tuple[int, Channel], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """The loop can be measured."""

    type: Literal["ready"]
    facts: LoopFacts
    # Monotonic.
    first_batch_at_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Blocks:
    """The answer to a request; which of it is there depends on what was asked."""

    type: Literal["blocks"]
    blocks: tuple[Block, ...]
    settling: Settling | None = None
    devices: tuple[DeviceMemory, ...] = ()
    epoch_start_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    copy_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    finite: bool | None = None
    revisit: Revisit | None = None
    life_steps: Annotated[int, Field(ge=0)] | None = None


_Answer = TypeVar("_Answer", _Ready, _Blocks)


class Trial:
    """A process of the user's that stands in `autotune.steps` and waits to be asked.

    Between two requests all its processes are stopped (SIGSTOP). So its loader's workers
    neither refill their buffers, which would flatter the next block, nor take CPU time from
    another trial that is measured meanwhile: several can be open at once, and be asked in turn.

    Attributes:
        config: What runs.
        mode: How it was started.
        facts: What it says of its loop.
        start_up_s: From the request for the trial to the first batch for its loop; None until it
            is ready.
        ready_s: From the request for the trial until it could be measured.
        active_s: Seconds in which it was started or ran; it does not count while it is stopped.
        removed_files: Gets the paths of files that its steps created and that were removed with it.
        restart: Starts another trial of the same kind.
    """

    def __init__(
        self,
        channel: Channel,
        config: ThroughputConfig,
        origin: TrialOrigin,
        mode: StartMode,
        restart: Callable[[], Trial],
        removed_files: list[str],
    ) -> None:
        self.restart = restart
        self._keep: Callable[[Trial], None] | None = None
        self._has_ended_loop = False
        self.removed_files = removed_files
        self.config = config
        self.mode = mode
        self.facts = LoopFacts()
        self.start_up_s: float | None = None
        self.ready_s = 0.0
        self.active_s = 0.0
        self._channel = channel
        self._origin = origin
        self._memory = TreeMemory(origin.root_pid)
        # Where there is little from the start, half of that.
        self._memory_reserve = min(
            _MEMORY_RESERVE * this_machine().memory_bytes, memory_left_bytes() / 2
        )
        self._ready = False
        self._ended = False

    def wait_until_ready(self, deadline_s: float) -> None:
        """Wait until the loop asks for its first batch.

        Raises:
            TrialFailedError: It did not within `deadline_s` seconds, or failed before.
        """
        with self._memory.running():
            message = self._expect(_Ready, deadline_s, "get to the first batch of its loop")
        self._ready = True
        self._signal(signal.SIGSTOP)
        self.ready_s = self.active_s = time.monotonic() - self._origin.requested_at_s
        self._take_in(message)

    def measure(self, request: BlockRequest, *, deadline_s: float) -> Sample:
        """The blocks asked for, and the memory that the trial held then.

        Raises:
            TrialFailedError: It failed, or did not answer within `deadline_s` seconds.
        """
        at_s = unix_s()
        answer = self._ask(request, deadline_s)
        self._has_ended_loop |= answer.life_steps is not None
        return Sample(
            blocks=answer.blocks,
            at_s=at_s,
            settling=answer.settling,
            memory_bytes=self._memory.peak_bytes(),
            shared_memory_bytes=self._memory.shared_bytes,
            devices=answer.devices,
            life_steps=answer.life_steps,
        )

    def begin_epoch(self, *, limit_s: float, deadline_s: float) -> float | None:
        """Seconds from asking the loader for a new epoch to its first batch; None if it has none.

        Args:
            limit_s: Longest time for the loader's workers to come to rest before.
            deadline_s: As for `measure`.
        """
        request = BlockRequest(mode=BlockMode.EPOCH, min_s=limit_s)
        return self._ask(request, deadline_s).epoch_start_s

    def is_finite(self, *, deadline_s: float) -> bool | None:
        """Whether no parameter is NaN or infinite; None where that cannot be told.

        Args:
            deadline_s: As for `measure`.
        """
        return self._ask(BlockRequest(mode=BlockMode.CHECK), deadline_s).finite

    def copy_s(self, *, deadline_s: float) -> float | None:
        """Seconds of a step in which copies to a GPU keep the loop waiting; None without one.

        Args:
            deadline_s: As for `measure`.
        """
        return self._ask(BlockRequest(mode=BlockMode.COPY), deadline_s).copy_s

    def revisit(self, *, deadline_s: float) -> Revisit | None:
        """How samples load for the first time and again; None where that cannot be told.

        Args:
            deadline_s: As for `measure`.
        """
        return self._ask(BlockRequest(mode=BlockMode.REVISIT), deadline_s).revisit

    def _ask(self, request: BlockRequest, deadline_s: float) -> _Blocks:
        return self._exchange(request, _Blocks, deadline_s, "finish a block of steps")

    def _exchange(
        self, request: BlockRequest, kind: type[_Answer], deadline_s: float, task: str
    ) -> _Answer:
        """Let it run until it has answered."""
        start_s = time.monotonic()
        with self._memory.running():
            self._signal(signal.SIGCONT)
            try:
                self._channel.send(**dataclasses.asdict(request))
            except ChannelClosedError:
                self._raise_ended()
            answer = self._expect(kind, deadline_s, task)
            self._signal(signal.SIGSTOP)
        self.active_s += time.monotonic() - start_s
        return answer

    def _signal(self, number: signal.Signals) -> None:
        for group in self._origin.groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

    @property
    def can_swap(self) -> bool:
        """Whether it can go on with another configuration of the same batch."""
        return self.facts.swappable and not self._ended and not self._has_ended_loop

    def keep(self, keeper: Callable[[Trial], None]) -> None:
        """Have it handed on, still running, where it would be ended after a success."""
        self._keep = keeper

    def swap(self, config: ThroughputConfig, *, deadline_s: float) -> None:
        """Go on with another configuration, as a trial of that.

        Args:
            config: Differs in what its loader and its threads are set to alone.
            deadline_s: As for `measure`.

        Raises:
            TrialFailedError: It failed, or did not answer in time.
        """
        self._origin = dataclasses.replace(self._origin, requested_at_s=time.monotonic())
        self.active_s = 0.0
        request = BlockRequest(mode=BlockMode.SWAP, config=config.to_dict())
        message = self._exchange(request, _Ready, deadline_s, "take another loader")
        self.config, self.mode = config, StartMode.SWAP
        self.ready_s = self.active_s
        self._take_in(message)

    def _take_in(self, message: _Ready) -> None:
        self.facts = message.facts
        self.start_up_s = message.first_batch_at_s - self._origin.requested_at_s

    def renew(self) -> None:
        """End the process, and go on with another one of the same kind.

        A loop that ends by itself is measured in several processes.

        Raises:
            TrialFailedError: The new one ended or took too long before its loop.
        """
        self.close()
        other = self.restart()
        self._channel, self._origin, self._memory = other._channel, other._origin, other._memory
        self.active_s += other.active_s
        self._ended = False

    def close(self) -> None:
        """End the trial, its workers included."""
        self._end(0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._keep is not None and error is None and self.can_swap:
            self._keep(self)
        else:
            self.close()

    def _end(self, grace_s: float) -> tuple[int | None, str]:
        """End the trial once; gives its exit code if it ended by itself, and its last output."""
        if self._ended:
            return None, ""
        self._ended = True
        self._channel.close()
        exit_code = self._origin.end(grace_s)
        self.removed_files += remove_left_files(self._origin.notes)
        output = read_tail(self._origin.output)
        self._origin.output.unlink(missing_ok=True)
        return exit_code, output

    def _expect(self, kind: type[_Answer], deadline_s: float, task: str) -> _Answer:
        """The trial's next message, which must be of that kind."""
        if not self._answers_within(deadline_s):
            self._origin.abort()
            _, output = self._end(0.0)
            raise TrialFailedError(
                describe_hang(f"the trial did not {task} within {deadline_s:.0f} s", output)
            )
        try:
            answer = self._channel.receive()
        except ChannelClosedError:
            self._raise_ended()
        if answer.get("type") == "failed":
            self._raise_reported(answer)
        try:
            return validate(kind, answer, source="the trial's answer")
        except BadInputError as error:
            self._fail(FailureCause.CRASHED, str(error))

    def _answers_within(self, limit_s: float) -> bool:
        """Whether an answer, or the end of the connection, comes in time.

        Raises:
            TrialFailedError: So little memory was left that the machine would begin to swap, or
                something was wrong with how the trial was started.
        """
        end_s = time.monotonic() + limit_s
        while not self._channel.poll(min(_LOOK_S, end_s - time.monotonic())):
            fault = self._origin.find_fault()
            if fault is not None:
                self._fail(fault.cause, fault.message)
            self._look_at_followers()
            left = memory_left_bytes()
            if left < self._memory_reserve:
                self._fail(
                    FailureCause.OUT_OF_MEMORY,
                    f"ended before the machine would swap: {left / 2**20:,.0f} MiB were left",
                )
            if time.monotonic() > end_s:
                return False
        return True

    def _look_at_followers(self) -> None:
        """Raise what one of the ranks has said that follow the leading one; it may be stuck then.

        Raises:
            TrialFailedError: One has failed.
        """
        for rank, channel in self._origin.followers:
            with contextlib.suppress(ChannelClosedError):
                message = channel.receive(0.0) if channel.poll(0.0) else {}
                if message.get("type") == "failed":
                    self._raise_reported({**message, "rank": rank})

    def _raise_reported(self, message: Message) -> NoReturn:
        """The trial said itself what went wrong, or with which of its ranks."""
        cause, text = str(message.get("cause")), str(message.get("message", ""))
        rank = message.get("rank")
        whose = "" if rank is None else f"rank {rank}: "
        if cause in set(FailureCause):
            self._fail(FailureCause(cause), whose + text, setting=message.get("setting"))
        # The traceback is printed after the report; the connection ends when it is.
        self._channel.poll(_TRACEBACK_DEADLINE_S)
        _, output = self._end(0.0)
        oom_killed = self._origin.oom.struck()
        failure = describe_exception(str(message.get("error")), text, output, oom_killed=oom_killed)
        raise TrialFailedError(dataclasses.replace(failure, message=whose + failure.message))

    def _raise_ended(self) -> NoReturn:
        """The trial is gone without a word: its exit code tells what there is to tell."""
        self._look_at_followers()
        exit_code, output = self._end(_TRACEBACK_DEADLINE_S)
        if exit_code == 0:
            where = "inside its loop" if self._ready else "without calling autotune.steps"
            cause = FailureCause.LOOP_ENDED if self._ready else FailureCause.NEVER_CALLED
            message = f"the command ended {where}, with exit code 0"
            raise TrialFailedError(Failure(cause=cause, message=message, output=output))
        oom_killed = self._origin.oom.struck()
        raise TrialFailedError(describe_exit(exit_code, output, oom_killed=oom_killed))

    def _fail(self, cause: FailureCause, message: str, *, setting: str | None = None) -> NoReturn:
        _, output = self._end(0.0)
        raise TrialFailedError(
            Failure(cause=cause, message=message, output=output, setting=setting)
        )


def read_tail(path: Path) -> str:
    """The last lines that a process printed."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.strip().splitlines() if not _NO_NEWS.match(line)]
    return "\n".join(lines[-MAX_OUTPUT_LINES:])
