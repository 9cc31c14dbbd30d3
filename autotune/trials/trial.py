"""One running trial: asked for blocks, watched while it gives them, ended with its whole group."""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from autotune.channel import Channel, ChannelClosedError, Message
from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError
from autotune.measurement import Block, Failure, FailureCause, Sample, StartMode
from autotune.trials.usage import UsageMeter
from autotune.validation import validate

MAX_OUTPUT_LINES = 30
# How long a trial that reported an exception may take to print its traceback.
_TRACEBACK_DEADLINE_S = 2.0


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
class BlockRequest:
    """What a trial is asked to time, without a pause between the blocks.

    Attributes:
        num_blocks: How many blocks.
        min_s: Shortest duration of a block.
        min_steps: Fewest steps in a block.
        multiple_of: The number of steps in a block is a multiple of this.
        lead_in_s: Most seconds spent on uncounted steps until the prefetch buffer is steady.
    """

    num_blocks: int = 1
    min_s: float
    min_steps: int = 1
    multiple_of: int = 1
    lead_in_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialOrigin:
    """How a trial came to be: what its owner needs to watch it and to end it.

    Attributes:
        root_pid: Process whose tree is measured.
        requested_at_s: Monotonic time at which the start was asked for.
        output: File that holds what the trial prints.
        end: Ends the trial's group, after so many seconds in which it may still end by itself;
            gives the leader's exit code where it is known.
    """

    root_pid: int
    requested_at_s: float
    output: Path
    end: Callable[[float], int | None]


class Trial:
    """A process of the user's that stands in `autotune.steps` and waits to be asked."""

    def __init__(
        self,
        channel: Channel,
        config: ThroughputConfig,
        origin: TrialOrigin,
        mode: StartMode,
        usable_cores: int,
    ) -> None:
        self.config = config
        self.mode = mode
        self.unit: str | None = None
        self.start_up_s: float | None = None
        self._channel = channel
        self._origin = origin
        self._usable_cores = usable_cores
        self._meter = UsageMeter(origin.root_pid, usable_cores)
        self._ended = False

    @property
    def age_s(self) -> float:
        """Seconds since the trial was asked for."""
        return time.monotonic() - self._origin.requested_at_s

    def wait_until_ready(self, deadline_s: float) -> None:
        """Wait until the loop asks for its first batch.

        Raises:
            TrialFailedError: It did not within `deadline_s` seconds, or failed before.
        """
        self.unit = self._expect("ready", deadline_s, "call autotune.steps").get("unit")

    def measure(self, request: BlockRequest, *, deadline_s: float) -> Sample:
        """The blocks asked for, and what the machine did while they ran.

        Raises:
            TrialFailedError: It failed, or did not answer within `deadline_s` seconds.
        """
        before = self._meter.read()
        try:
            self._channel.send(**dataclasses.asdict(request))
        except ChannelClosedError:
            self._raise_ended()
        message = self._expect("blocks", deadline_s, "finish a block of steps")
        usage = self._meter.usage_since(before)
        blocks = tuple(validate(Block, block, source="trial") for block in message["blocks"])
        if self.start_up_s is None:
            self.start_up_s = blocks[0].first_batch_at_s - self._origin.requested_at_s
        return Sample(blocks=blocks, usage=usage, usable_cores=self._usable_cores)

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
        self.close()

    def _end(self, grace_s: float) -> tuple[int | None, str]:
        """End the trial once; gives its exit code where that is known, and its last output."""
        if self._ended:
            return None, ""
        self._ended = True
        self._channel.close()
        exit_code = self._origin.end(grace_s)
        output = read_tail(self._origin.output)
        self._origin.output.unlink(missing_ok=True)
        return exit_code, output

    def _expect(self, kind: str, deadline_s: float, task: str) -> Message:
        if not self._channel.poll(deadline_s):
            _, output = self._end(0.0)
            message = f"the trial did not {task} within {deadline_s:.0f} s"
            raise TrialFailedError(
                Failure(cause=FailureCause.TIMED_OUT, message=message, output=output)
            )
        try:
            answer = self._channel.receive()
        except ChannelClosedError:
            self._raise_ended()
        if answer.get("type") == kind:
            return answer
        self._raise_reported(answer)

    def _raise_reported(self, message: Message) -> NoReturn:
        """The trial said itself what went wrong."""
        if "cause" in message:
            cause = FailureCause(message["cause"])
            text = str(message["message"])
        else:
            name, detail = str(message.get("error")), str(message.get("message", ""))
            cause = classify_exception(name, detail)
            first_line = detail.strip().split("\n")[0]
            text = f"{name}: {first_line}" if first_line else name
            # The traceback is printed after the report; the connection ends when it is.
            self._channel.poll(_TRACEBACK_DEADLINE_S)
        _, output = self._end(0.0)
        raise TrialFailedError(Failure(cause=cause, message=text, output=output))

    def _raise_ended(self) -> NoReturn:
        """The trial is gone without a word: its exit code tells what there is to tell."""
        exit_code, output = self._end(_TRACEBACK_DEADLINE_S)
        raise TrialFailedError(describe_exit(exit_code, output))


def classify_exception(name: str, detail: str) -> FailureCause:
    """The cause behind an exception in the user's code.

    Source: the texts are torch's: c10/core/impl/alloc_cpu.cpp ("can't allocate memory"),
    torch/utils/data/_utils/signal_handling ("Bus error … out of shared memory").
    """
    if name in ("MemoryError", "OutOfMemoryError"):
        return FailureCause.OUT_OF_MEMORY
    patterns = r"can't allocate memory|not enough memory|[Oo]ut of memory|Bus error|Cannot allocate"
    return FailureCause.OUT_OF_MEMORY if re.search(patterns, detail) else FailureCause.CRASHED


def describe_exit(exit_code: int | None, output: str) -> Failure:
    """What a process's end says of its cause."""
    if exit_code is not None and exit_code < 0:
        number = -exit_code
        name = signal.Signals(number).name
        hint = " (the kernel does this when memory runs out)" if number == signal.SIGKILL else ""
        bus = number == signal.SIGBUS
        cause = FailureCause.OUT_OF_MEMORY if bus else FailureCause.KILLED
        return Failure(cause=cause, message=f"ended by signal {name}{hint}", output=output)
    shown = "unknown" if exit_code is None else str(exit_code)
    return Failure(
        cause=FailureCause.CRASHED, message=f"ended with exit code {shown}", output=output
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
    return "\n".join(text.strip().splitlines()[-MAX_OUTPUT_LINES:])
