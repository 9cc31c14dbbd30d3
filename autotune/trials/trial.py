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
from typing import NoReturn, Self

from autotune.blocks import BlockMode, BlockRequest, Sample
from autotune.channel import Channel, ChannelClosedError, Message
from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.trials.memory import TreeMemory
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
class TrialOrigin:
    """How a trial came to be: what its owner needs to watch it and to end it.

    Attributes:
        root_pid: Process whose tree is measured.
        groups: Process groups of that tree.
        requested_at_s: Monotonic time at which the start was asked for.
        output: File that holds what the trial prints.
        end: Ends the trial's group, after so many seconds in which it may still end by itself;
            gives the leader's exit code where it is known.
    """

    root_pid: int
    groups: frozenset[int]
    requested_at_s: float
    output: Path
    end: Callable[[float], int | None]


class Trial:
    """A process of the user's that stands in `autotune.steps` and waits to be asked.

    Between two requests all its processes are stopped (SIGSTOP). So its loader's workers
    neither refill their buffers, which would flatter the next block, nor take CPU time from
    another trial that is measured meanwhile: several can be open at once, and be asked in turn.

    Attributes:
        config: What runs.
        mode: How it was started.
        unit: Name of the unit that the script counts; None for samples.
        steps_per_epoch: Length of the script's loader, where it has one.
        start_up_s: From the request for the trial to the first batch handed to its loop, less the
            time in which it was stopped; None until it is known.
        active_s: Seconds in which it was started or ran; it does not count while it is stopped.
    """

    def __init__(
        self, channel: Channel, config: ThroughputConfig, origin: TrialOrigin, mode: StartMode
    ) -> None:
        self.config = config
        self.mode = mode
        self.unit: str | None = None
        self.steps_per_epoch: int | None = None
        self.start_up_s: float | None = None
        self.active_s = 0.0
        self._channel = channel
        self._origin = origin
        self._memory = TreeMemory(origin.root_pid)
        self._ready = False
        self._ended = False

    def wait_until_ready(self, deadline_s: float) -> None:
        """Wait until the loop asks for its first batch.

        Raises:
            TrialFailedError: It did not within `deadline_s` seconds, or failed before.
        """
        with self._memory.running():
            message = self._expect("ready", deadline_s, "call autotune.steps")
        self._ready = True
        self._signal(signal.SIGSTOP)
        self.active_s = time.monotonic() - self._origin.requested_at_s
        self.unit = message.get("unit")
        self.steps_per_epoch = message.get("steps_per_epoch")

    def measure(self, request: BlockRequest, *, deadline_s: float) -> Sample:
        """The blocks asked for, and the memory that the trial held then.

        Raises:
            TrialFailedError: It failed, or did not answer within `deadline_s` seconds.
        """
        active_before_s, asked_at_s, at_s = self.active_s, time.monotonic(), time.time()
        answer = self._ask(request, deadline_s)
        settling = answer.get("settling")
        found = {
            "blocks": answer["blocks"],
            "at_s": at_s,
            "settling": settling,
            "memory_bytes": self._memory.peak_bytes(),
            "shared_memory_bytes": self._memory.shared_bytes,
            "device_memory_bytes": answer["device_memory_bytes"],
        }
        sample = validate(Sample, found, source="trial")
        if self.start_up_s is None and sample.settling is not None:
            self.start_up_s = active_before_s + sample.settling.first_batch_at_s - asked_at_s
        return sample

    def begin_epoch(self, *, limit_s: float, deadline_s: float) -> float | None:
        """Seconds from asking the loader for a new epoch to its first batch; None if it has none.

        Args:
            limit_s: Longest time for the loader's workers to come to rest before.
            deadline_s: As for `measure`.
        """
        answer = self._ask(BlockRequest(mode=BlockMode.EPOCH, min_s=limit_s), deadline_s)
        seconds = answer.get("epoch_start_s")
        return None if seconds is None else float(seconds)

    def _ask(self, request: BlockRequest, deadline_s: float) -> Message:
        start_s = time.monotonic()
        with self._memory.running():
            self._signal(signal.SIGCONT)
            try:
                self._channel.send(**dataclasses.asdict(request))
            except ChannelClosedError:
                self._raise_ended()
            answer = self._expect("blocks", deadline_s, "finish a block of steps")
            self._signal(signal.SIGSTOP)
        self.active_s += time.monotonic() - start_s
        return answer

    def _signal(self, number: signal.Signals) -> None:
        for group in self._origin.groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

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
        if exit_code == 0:
            where = "inside its loop" if self._ready else "without calling autotune.steps"
            cause = FailureCause.LOOP_ENDED if self._ready else FailureCause.NEVER_CALLED
            message = f"the command ended {where}, with exit code 0"
            raise TrialFailedError(Failure(cause=cause, message=message, output=output))
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
