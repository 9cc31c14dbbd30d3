"""Starts trials of a user's command: forked from a host where that is safe, afresh otherwise."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NoReturn, Self

from autotune.channel import CHANNEL_VARIABLE, Channel, ChannelClosedError, Listener, Message
from autotune.config import THREAD_VARIABLES, ThroughputConfig
from autotune.errors import BadInputError
from autotune.host import NOTES_PREFIX
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.trials.causes import describe_exit, describe_hang
from autotune.trials.groups import ProcessGroups
from autotune.trials.memory import OomWatch
from autotune.trials.stacks import STACKS_AT_ABORT
from autotune.trials.trial import (
    Trial,
    TrialFailedError,
    TrialOrigin,
    read_tail,
)
from autotune.validation import validate

# A host has one thread in every native pool, so that no pool exists when it forks: GNU OpenMP
# hangs in a child whose parent ran a parallel region. Each trial sets its own counts.
SINGLE_THREADED = dict.fromkeys(THREAD_VARIABLES, "1")
# A killed process is reaped within milliseconds unless it hangs in the kernel.
_REAP_DEADLINE_S = 5.0
# How long a fork may take to connect; it takes milliseconds.
_FORK_DEADLINE_S = 30.0
_OUTPUT_PREFIX = "output-"
# Whoever connects introduces itself at once.
_FIRST_MESSAGE_DEADLINE_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a started command says of itself when it calls `load_config`.

    Attributes:
        pid: The process that called.
        rank: Its rank where several start together (torchrun), else 0.
        world_size: How many start together.
        default: The script's own settings: the baseline.
        effective_batch_size: Samples per optimizer step that the script asks for.
        config_path: The settings file that it would load in training.
        default_num_threads: Intra-op threads that torch chose here by itself.
        fork_obstacle: Why the process cannot be forked, None if it can.
        uses_cuda: Whether it has put anything on a GPU.
        versions: Of Python and of torch.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "ignore"}

    pid: int
    rank: int
    world_size: int
    default: ThroughputConfig
    effective_batch_size: int | None
    config_path: str | None
    default_num_threads: int | None
    fork_obstacle: str | None
    uses_cuda: bool
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Launch:
    """A command that was started, and may not have called `load_config` yet.

    Attributes:
        process: Its first process.
        start: What its processes introduce themselves with.
        output: File that holds what it prints.
        requested_at_s: Monotonic time at which it was started.
        oom: Began with it.
    """

    process: subprocess.Popen[bytes]
    start: str
    output: Path
    requested_at_s: float
    oom: OomWatch


@dataclasses.dataclass(slots=True)
class _Host:
    """A started command whose process has called `load_config` and waits there."""

    process: subprocess.Popen[bytes]
    groups: frozenset[int]
    channel: Channel
    followers: list[Channel]
    introduction: Introduction
    output: Path
    requested_at_s: float
    oom: OomWatch


class Runner:
    """Starts trials of one command, one at a time, and ends whatever is left when it closes.

    Args:
        command: Program and arguments, as the user would type them.
        groups: Takes charge of every process group that is started.
        listener: Where the processes connect.
        start_mode: FRESH never forks; FORK and None (automatic) fork where it is safe.
        start_deadline_s: Longest time from a start to `load_config`, and from there to the loop;
            may be tightened once it is known how long a start takes.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        *,
        groups: ProcessGroups,
        listener: Listener,
        start_mode: StartMode | None,
        start_deadline_s: float,
    ) -> None:
        self.start_deadline_s = start_deadline_s
        self.fresh_reason = "asked for" if start_mode is StartMode.FRESH else None
        self.introduction: Introduction | None = None
        # Samples that trials draw all batches from; 0 for all that there are.
        self.num_repeated = 0
        self._command = command
        self._groups = groups
        self._listener = listener
        self._fork_host: _Host | None = None
        self._ahead: collections.deque[_Launch] = collections.deque()
        self._early: dict[str, list[tuple[Channel, Message]]] = {}
        self._num_starts = 0

    @property
    def mode(self) -> StartMode:
        """How `start` starts trials unless it is told otherwise."""
        return StartMode.FRESH if self.fresh_reason else StartMode.FORK

    def give_up_forking(self, reason: str) -> None:
        """Start every further trial afresh, for a reason that is shown."""
        self.fresh_reason = reason
        self.close()

    def start_default(self) -> Trial:
        """A trial of the script's own settings, in a fresh process, as training would start.

        Raises:
            TrialFailedError: The command ended or took too long before it got there.
            BadInputError: The program cannot be started at all.
        """
        return self._when_ready(self._start_fresh(None))

    def start(self, config: ThroughputConfig, mode: StartMode) -> Trial:
        """A trial of `config` that waits in its loop.

        Where FORK is asked for and turns out to be unsafe, the trial is started afresh, as all
        after it; `fresh_reason` then says why.

        Raises:
            TrialFailedError: The command ended or took too long before it got there.
            BadInputError: The program cannot be started at all.
        """
        if mode is StartMode.FORK and self._bring_up_fork_host():
            trial = self._start_forked(config)
        else:
            trial = self._start_fresh(config)
        return self._when_ready(trial)

    def launch_ahead(self, number: int) -> None:
        """Start the command so many times at once, for the next fresh trials.

        Each gets as far as `load_config` meanwhile, so that starting several takes little longer
        than starting one.

        Raises:
            BadInputError: The program cannot be started at all.
        """
        for _ in range(number):
            self._ahead.append(self._launch({}))

    def close(self) -> None:
        """End the host, if there is one, and what was launched ahead."""
        while self._ahead:
            launch = self._ahead.popleft()
            for channel, _ in self._early.pop(launch.start, ()):
                channel.close()
            self._end_process(launch.process, 0.0)
            launch.output.unlink(missing_ok=True)
        if self._fork_host is not None:
            host, self._fork_host = self._fork_host, None
            self._end_host(host, 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _when_ready(self, trial: Trial) -> Trial:
        try:
            trial.wait_until_ready(self.start_deadline_s)
        except BaseException:
            trial.close()
            raise
        return trial

    def _start_fresh(self, config: ThroughputConfig | None) -> Trial:
        host = self._start_host({})
        self.introduction = host.introduction
        chosen = config or host.introduction.default
        try:
            for channel in (host.channel, *host.followers):
                channel.send(
                    type="run",
                    config=chosen.to_dict(),
                    root_pid=host.process.pid,
                    num_repeated=self.num_repeated,
                )
        except ChannelClosedError as error:
            exit_code = self._end_host(host, _REAP_DEADLINE_S)
            raise TrialFailedError(_describe_end(host, exit_code)) from error
        origin = TrialOrigin(
            root_pid=host.process.pid,
            groups=host.groups,
            requested_at_s=host.requested_at_s,
            output=host.output,
            notes=_notes_beside(host.output),
            oom=host.oom,
            abort=lambda: self._groups.abort(host.process.pid),
            end=lambda grace_s: self._end_host(host, grace_s),
        )

        def restart() -> Trial:
            return self._when_ready(self._start_fresh(config))

        return Trial(host.channel, chosen, origin, StartMode.FRESH, restart)

    def _bring_up_fork_host(self) -> bool:
        """Whether a host is there that can be forked; starts one where none is."""
        if self._fork_host is None and self.fresh_reason is None:
            self._fork_host = self._start_host(SINGLE_THREADED)
            obstacle = self._fork_host.introduction.fork_obstacle
            if obstacle is not None:
                self.give_up_forking(obstacle)
            else:
                self._prepare(self._fork_host)
        return self._fork_host is not None

    def _prepare(self, host: _Host) -> None:
        """Have a host pay for what all its trials need."""
        try:
            host.channel.send(type="prepare")
            host.channel.receive(self.start_deadline_s)
        except ChannelClosedError as error:
            self._raise_host_gone(host, error)

    def _start_forked(self, config: ThroughputConfig) -> Trial:
        host = self._fork_host
        assert host is not None
        start, output = self._new_start()
        requested_at_s = time.monotonic()
        environment = {name: os.environ.get(name) for name in SINGLE_THREADED}
        try:
            host.channel.send(
                type="fork",
                start=start,
                config=config.to_dict(),
                num_repeated=self.num_repeated,
                output=str(output),
                environment=environment,
            )
            pid = int(host.channel.receive(_FORK_DEADLINE_S)["pid"])
        except (ChannelClosedError, KeyError, TypeError, ValueError) as error:
            self._raise_host_gone(host, error)
        self._groups.add(pid)
        accepted = self._accept_until(requested_at_s + _FORK_DEADLINE_S, start, None)
        if accepted is None:
            self._end_fork(host, pid, 0.0)
            failure = Failure(cause=FailureCause.TIMED_OUT, message="a forked trial did not start")
            raise TrialFailedError(failure)
        channel, _ = accepted
        origin = TrialOrigin(
            root_pid=pid,
            groups=frozenset({pid}),
            requested_at_s=requested_at_s,
            output=output,
            notes=_notes_beside(output),
            oom=OomWatch(),
            abort=lambda: self._groups.abort(pid),
            end=lambda grace_s: self._end_fork(host, pid, grace_s),
        )
        return Trial(
            channel, config, origin, StartMode.FORK, lambda: self.start(config, StartMode.FORK)
        )

    def _raise_host_gone(self, host: _Host, error: Exception) -> NoReturn:
        """The host died between two trials; the next start brings up another one."""
        self._fork_host = None
        exit_code = self._end_host(host, _REAP_DEADLINE_S)
        raise TrialFailedError(_describe_end(host, exit_code)) from error

    def _start_host(self, environment: Mapping[str, str]) -> _Host:
        """Start the command, and wait until each of its ranks has introduced itself."""
        if self._ahead and not environment:
            return self._meet(self._ahead.popleft())
        return self._meet(self._launch(environment))

    def _launch(self, environment: Mapping[str, str]) -> _Launch:
        start, output = self._new_start()
        requested_at_s, oom = time.monotonic(), OomWatch()
        environment = {
            **STACKS_AT_ABORT,
            **self._groups.environment,
            **environment,
            CHANNEL_VARIABLE: f"{start}:{self._listener.path}",
        }
        with output.open("wb") as file:
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, **environment},
                )
            except OSError as error:
                raise BadInputError(
                    f"command: {self._command[0]} cannot be started: {error.strerror}"
                ) from error
        self._groups.add(process.pid)
        # Where memory runs out, the kernel is to end a trial and not the coordinator. All that a
        # trial starts inherits this. Source: proc_pid_oom_score_adj(5).
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
        return _Launch(
            process=process, start=start, output=output, requested_at_s=requested_at_s, oom=oom
        )

    def _meet(self, launch: _Launch) -> _Host:
        process = launch.process
        try:
            channels = self._introductions(launch)
        except BaseException:
            self._end_process(process, 0.0)
            raise
        (channel, introduction), *followers = channels
        return _Host(
            process=process,
            groups=self._groups.add_descendants(process.pid),
            channel=channel,
            followers=[follower for follower, _ in followers],
            introduction=introduction,
            output=launch.output,
            requested_at_s=launch.requested_at_s,
            oom=launch.oom,
        )

    def _introductions(self, launch: _Launch) -> list[tuple[Channel, Introduction]]:
        """The channels of all ranks of a started command, by rank."""
        found: list[tuple[Channel, Introduction]] = []
        deadline_s = launch.requested_at_s + self.start_deadline_s
        while not found or len(found) < found[0][1].world_size:
            accepted = self._accept_until(deadline_s, launch.start, launch.process)
            if accepted is None:
                raise TrialFailedError(self._describe_silence(launch))
            channel, message = accepted
            found.append((channel, validate(Introduction, message, source="the command")))
        return sorted(found, key=lambda pair: pair[1].rank)

    def _describe_silence(self, launch: _Launch) -> Failure:
        exit_code, output = launch.process.poll(), launch.output
        if exit_code is None:
            self._groups.abort(launch.process.pid)
            return describe_hang(
                f"the command did not call autotune.load_config within "
                f"{self.start_deadline_s:.0f} s",
                read_tail(output),
            )
        if exit_code == 0:
            return Failure(
                cause=FailureCause.NEVER_CALLED,
                message="the command ended without calling autotune.load_config: add the two "
                "calls to its training loop (see the README)",
                output=read_tail(output),
            )
        return _describe_end(launch, exit_code)

    def _accept_until(
        self, deadline_s: float, start: str, process: subprocess.Popen[bytes] | None
    ) -> tuple[Channel, Message] | None:
        """The next connection of this start, and what it said first.

        None at the deadline, or when `process` has ended. What was launched ahead is kept waiting;
        anybody else who connects (a process left over from an earlier start, a second one of the
        same script) is turned away.
        """
        if self._early.get(start):
            return self._early[start].pop(0)
        while True:
            # While a process starts, its end must be noticed too: look ten times a second. Who
            # connected in time is heard, even if nobody listened until now.
            left_s = deadline_s - time.monotonic()
            ended = process is not None and process.poll() is not None
            channel = self._listener.accept(0.0 if ended else min(max(left_s, 0.0), 0.1))
            if channel is None:
                if ended or left_s <= 0:
                    return None
                continue
            try:
                message = channel.receive(_FIRST_MESSAGE_DEADLINE_S)
            except ChannelClosedError:
                message = {}
            if message.get("start") == start:
                return channel, message
            if message.get("start") in {launch.start for launch in self._ahead}:
                self._early.setdefault(str(message["start"]), []).append((channel, message))
            else:
                channel.close()

    def _end_host(self, host: _Host, grace_s: float) -> int | None:
        for channel in (host.channel, *host.followers):
            channel.close()
        return self._end_process(host.process, grace_s)

    def _end_process(self, process: subprocess.Popen[bytes], grace_s: float) -> int | None:
        exit_code = _wait(process, grace_s)
        self._groups.end(process.pid)
        _wait(process, _REAP_DEADLINE_S)
        self._groups.forget(process.pid)
        return exit_code

    def _end_fork(self, host: _Host, pid: int, grace_s: float) -> int | None:
        """End a forked trial. Its host is its parent, and the only one who can reap it."""
        exit_code = self._reap(host, pid, grace_s) if grace_s else None
        self._groups.end(pid)
        if exit_code is None:
            self._reap(host, pid, _REAP_DEADLINE_S)
        self._groups.forget(pid)
        return exit_code

    def _reap(self, host: _Host, pid: int, limit_s: float) -> int | None:
        try:
            host.channel.send(type="reap", pid=pid, limit_s=limit_s)
            answer = host.channel.receive(limit_s + _REAP_DEADLINE_S).get("exit_code")
        except ChannelClosedError:
            return None
        return answer if isinstance(answer, int) else None

    def _new_start(self) -> tuple[str, Path]:
        """What tells the next start from all others, and where its output goes."""
        self._num_starts += 1
        start = str(self._num_starts)
        return start, self._listener.directory / f"{_OUTPUT_PREFIX}{start}.txt"


@contextlib.contextmanager
def open_runner(
    command: tuple[str, ...], *, start_mode: StartMode | None, start_deadline_s: float
) -> Iterator[Runner]:
    """A runner with a listener and a guard of its own; all that it started ends with it.

    See `Runner` for the arguments.
    """
    groups = ProcessGroups()
    try:
        listener = Listener()
        groups.remove_at_end(listener.directory)
        with (
            listener,
            Runner(
                command,
                groups=groups,
                listener=listener,
                start_mode=start_mode,
                start_deadline_s=start_deadline_s,
            ) as runner,
        ):
            yield runner
    finally:
        groups.close()


def _describe_end(started: _Launch | _Host, exit_code: int | None) -> Failure:
    return describe_exit(exit_code, read_tail(started.output), oom_killed=started.oom.struck())


def _notes_beside(output: Path) -> Path:
    """Where a trial notes what it leaves, from where its output goes."""
    return output.with_name(NOTES_PREFIX + output.stem.removeprefix(_OUTPUT_PREFIX))


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
