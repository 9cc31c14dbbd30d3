"""Starts trials of a user's command: forked from a host where that is safe, afresh otherwise."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn, Self

from autotune.axes import AXES
from autotune.config import THREAD_VARIABLES, ThroughputConfig
from autotune.instrument.accelerator import ASK_WITHOUT_CUDA
from autotune.ipc.channel import Channel, ChannelClosedError, Listener
from autotune.ipc.introductions import Arrivals, Introduction, Reception, missing_ranks
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.patch.environment import Job, hook_environment
from autotune.patch_target import PatchTarget
from autotune.system.memory import OomWatch
from autotune.trials.failures import describe_exit, describe_hang
from autotune.trials.first_look import find_target
from autotune.trials.launcher import OUTPUT_PREFIX, REAP_DEADLINE_S, Launch, Launcher
from autotune.trials.process_groups import ProcessGroups, groups_of_launchers
from autotune.trials.trial import (
    Trial,
    TrialFailedError,
    TrialOrigin,
    read_tail,
)
from autotune.trials.watchdog import NOTES_PREFIX, remove_left_files

# A host has one thread in every native pool, so that no pool exists when it forks: GNU OpenMP
# hangs in a child whose parent ran a parallel region. Each trial sets its own counts.
SINGLE_THREADED = dict.fromkeys(THREAD_VARIABLES, "1")
# What a host finds in its environment, and no other process: a trial gets back what the user set.
_HOST_ENVIRONMENT = {**SINGLE_THREADED, **ASK_WITHOUT_CUDA}
# Why trials start afresh where the user wants that.
ASKED_FOR = "asked for"
# While ranks wait for those on other machines, it is looked so often whether these are there.
_MEETING_TICK_S = 0.1
# How long a fork may take to connect; it takes milliseconds.
_FORK_DEADLINE_S = 30.0
# Once the time is up, a start may still take so long.
_LEAST_PATIENCE_S = 10.0


@dataclasses.dataclass(slots=True)
class _Host:
    """A started command whose process has called `load_config` and waits there."""

    process: subprocess.Popen[bytes]
    start: str
    channel: Channel
    followers: list[tuple[int, Channel]]
    paused: frozenset[int]
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

    Attributes:
        start_deadline_s: See above.
        end_s: Monotonic time at which the time for everything is up. What is started before gets no
            longer than until then, and what is started later no longer than `least_patience_s`.
        least_patience_s: See `end_s`.
        fresh_reason: Why trials start afresh; None where they are forked.
        introduction: What the last fresh start said of itself.
        patch_target: What is tuned in a script that does not call autotune; None for one that does.
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
        self.end_s = math.inf
        self.least_patience_s = _LEAST_PATIENCE_S
        self.fresh_reason = ASKED_FOR if start_mode is StartMode.FRESH else None
        self.introduction: Introduction | None = None
        self.patch_target: PatchTarget | None = None
        # Samples that trials draw all batches from; 0 for all that there are.
        self.num_repeated = 0
        # Paths of files that the steps of trials created, and that were removed with them.
        self.removed_files: list[str] = []
        self._groups = groups
        self._launcher = Launcher(command, groups=groups, listener=listener)
        self._directory = listener.directory
        self._reception = Reception(listener)
        self._fork_host: _Host | None = None
        self._ahead: collections.deque[Launch] = collections.deque()
        # Ranks that the command starts on each machine by itself; None until it has.
        self._own_ranks: int | None = None
        # A trial that waits to go on with another configuration.
        self._kept: Trial | None = None

    @property
    def mode(self) -> StartMode:
        """How `start` starts trials unless it is told otherwise."""
        return StartMode.FRESH if self.fresh_reason else StartMode.FORK

    @property
    def patience_s(self) -> float:
        """Longest time for the next stage of a start."""
        now_s = time.monotonic()
        return self._deadline_s(now_s) - now_s

    @property
    def may_collide(self) -> bool:
        """Whether two starts at once may want the same network port, as far as is known."""
        return self.introduction is not None and self.introduction.is_distributed

    def give_up_forking(self, reason: str) -> None:
        """Start every further trial afresh, for a reason that is shown."""
        self.fresh_reason = reason
        self.close()

    def patch(self, *, with_batch_size: bool) -> PatchTarget:
        """Find out what feeds the training of a script that does not call autotune.

        The command is started once and ended after a few steps. All trials after it are of what was
        found.

        Args:
            with_batch_size: Whether the batch size is to be tuned, too.

        Raises:
            TrialFailedError: The command ended or took too long before its first optimizer steps.
            BadInputError: The program cannot be started at all, or cannot be tuned like this; the
                message says what to do instead.
        """
        notes = self._directory / f"{NOTES_PREFIX}look"
        launch = self._launch(hook_environment(Job(notes=str(notes)), os.environ))
        try:
            target = find_target(launch, self._reception, self._deadline_s(launch.requested_at_s))
        finally:
            self._end_launch(launch, 0.0)
            self.removed_files += remove_left_files(notes)
        self.patch_target = dataclasses.replace(target, tunes_batch_size=with_batch_size)
        self._launcher.environment = hook_environment(Job(target=self.patch_target), os.environ)
        return self.patch_target

    def start_default(self) -> Trial:
        """A trial of the script's own settings, in a fresh process, as training would start.

        Raises:
            TrialFailedError: The command ended or took too long before it got there.
            BadInputError: The program cannot be started at all.
        """
        return self._when_ready(self._start_fresh(None))

    def start(self, config: ThroughputConfig, mode: StartMode, *, may_swap: bool = False) -> Trial:
        """A trial of `config` that waits in its loop.

        Where FORK is asked for and turns out to be unsafe, the trial is started afresh, as all
        after it; `fresh_reason` then says why.

        Args:
            config: What runs.
            mode: How to start it.
            may_swap: Whether a trial that is not forked may go on in the process of the one before,
                if that differs in its workers and threads alone; this one is kept for the next.

        Raises:
            TrialFailedError: The command ended or took too long before it got there.
            BadInputError: The program cannot be started at all.
        """
        if mode is StartMode.FORK and self._bring_up_fork_host():
            trial = self._start_forked(config)
            return self._when_ready(trial)
        if may_swap and self.fresh_reason != ASKED_FOR:
            trial = self._swap(config) or self._when_ready(self._start_fresh(config))
            trial.keep(self._keep)
            return trial
        return self._when_ready(self._start_fresh(config))

    def can_swap(self, config: ThroughputConfig) -> bool:
        """Whether a trial of `config` could go on in the process of the one before."""
        return self._kept is not None and _is_alike(self._kept.config, config)

    def _keep(self, trial: Trial) -> None:
        self._end_kept()
        self._kept = trial

    def _swap(self, config: ThroughputConfig) -> Trial | None:
        """The trial that was kept, with another configuration; None where it cannot have that."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        try:
            if _is_alike(kept.config, config):
                kept.swap(config, deadline_s=self.patience_s)
                kept.restart = lambda: self._when_ready(self._start_fresh(config))
                return kept
        except TrialFailedError:
            # Whether it is the configuration that fails, a fresh process will show.
            pass
        kept.close()
        return None

    def _end_kept(self) -> None:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            kept.close()

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
        """End the host, if there is one, and what was launched ahead or kept."""
        self._end_kept()
        while self._ahead:
            launch = self._ahead.popleft()
            self._end_launch(launch, 0.0)
            launch.output.unlink(missing_ok=True)
        if self._fork_host is not None:
            host, self._fork_host = self._fork_host, None
            self._end_host(host, 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _when_ready(self, trial: Trial) -> Trial:
        try:
            trial.wait_until_ready(self.patience_s)
        except BaseException:
            trial.close()
            raise
        return trial

    def _start_fresh(self, config: ThroughputConfig | None) -> Trial:
        # It may hold most of a GPU's memory.
        self._end_kept()
        host = self._start_host({}, self._other_ranks(config))
        self._own_ranks = self._own_ranks or host.introduction.default.ranks_per_node
        self.introduction = host.introduction
        chosen = config or host.introduction.default
        if chosen.num_ranks != host.introduction.world_size:
            self._end_host(host, 0.0)
            message = (
                f"ranks_per_node {chosen.ranks_per_node} has no effect: "
                f"{host.introduction.world_size} ranks were started where {chosen.num_ranks} were "
                "to be"
            )
            cause, setting = FailureCause.SETTING_IGNORED, "ranks_per_node"
            raise TrialFailedError(Failure(cause=cause, message=message, setting=setting))
        try:
            for channel in (host.channel, *(channel for _, channel in host.followers)):
                channel.send(
                    type="run",
                    config=chosen.to_dict(),
                    root_pid=host.process.pid,
                    num_repeated=self.num_repeated,
                    notes=str(_notes_beside(host.output)),
                )
        except ChannelClosedError as error:
            exit_code = self._end_host(host, REAP_DEADLINE_S)
            raise TrialFailedError(_describe_end(host, exit_code)) from error
        origin = TrialOrigin(
            root_pid=host.process.pid,
            groups=host.paused,
            requested_at_s=host.requested_at_s,
            output=host.output,
            notes=_notes_beside(host.output),
            oom=host.oom,
            find_fault=lambda: self._reception.find_second_rank(host.start),
            followers=tuple(host.followers),
            abort=lambda: self._groups.abort(host.process.pid),
            end=lambda grace_s: self._end_host(host, grace_s),
        )

        def restart() -> Trial:
            return self._when_ready(self._start_fresh(config))

        return Trial(host.channel, chosen, origin, StartMode.FRESH, restart, self.removed_files)

    def _other_ranks(self, config: ThroughputConfig | None) -> int | None:
        """How many ranks a machine is to run, where that is not what the command says."""
        if config is None or self._own_ranks in (None, config.ranks_per_node):
            return None
        return config.ranks_per_node

    def _bring_up_fork_host(self) -> bool:
        """Whether a host is there that can be forked; starts one where none is."""
        if self._fork_host is None and self.fresh_reason is None:
            self._fork_host = self._start_host(_HOST_ENVIRONMENT)
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
            host.channel.receive(self.patience_s)
        except ChannelClosedError as error:
            self._raise_host_gone(host, error)

    def _start_forked(self, config: ThroughputConfig) -> Trial:
        host = self._fork_host
        assert host is not None
        start, output = self._launcher.new_start()
        requested_at_s = time.monotonic()
        environment = {name: os.environ.get(name) for name in _HOST_ENVIRONMENT}
        try:
            host.channel.send(
                type="fork",
                start=start,
                config=config.to_dict(),
                num_repeated=self.num_repeated,
                notes=str(_notes_beside(output)),
                output=str(output),
                environment=environment,
            )
            pid = int(host.channel.receive(_FORK_DEADLINE_S)["pid"])
        except (ChannelClosedError, KeyError, TypeError, ValueError) as error:
            self._raise_host_gone(host, error)
        self._groups.add(pid)
        self._reception.expect(start)
        accepted = self._reception.accept(start, requested_at_s + _FORK_DEADLINE_S)
        self._reception.forget(start)
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
            find_fault=lambda: self._reception.find_second_rank(host.start),
            abort=lambda: self._groups.abort(pid),
            end=lambda grace_s: self._end_fork(host, pid, grace_s),
        )
        return Trial(
            channel,
            config,
            origin,
            StartMode.FORK,
            lambda: self.start(config, StartMode.FORK),
            self.removed_files,
        )

    def _raise_host_gone(self, host: _Host, error: Exception) -> NoReturn:
        """The host died between two trials; the next start brings up another one."""
        self._fork_host = None
        exit_code = self._end_host(host, REAP_DEADLINE_S)
        raise TrialFailedError(_describe_end(host, exit_code)) from error

    def _start_host(
        self, environment: Mapping[str, str], ranks_per_node: int | None = None
    ) -> _Host:
        """Start the command, and wait until each of its ranks has introduced itself."""
        if self._ahead and not environment and ranks_per_node is None:
            return self._meet(self._ahead.popleft())
        return self._meet(self._launch(environment, ranks_per_node))

    def _launch(self, environment: Mapping[str, str], ranks_per_node: int | None = None) -> Launch:
        launch = self._launcher.launch(environment, ranks_per_node=ranks_per_node)
        self._reception.expect(launch.start)
        return launch

    def _meet(self, launch: Launch) -> _Host:
        try:
            channels = self._introductions(launch)
        except BaseException:
            self._end_launch(launch, 0.0)
            raise
        (channel, introduction), *followers = channels
        groups = self._groups.add_descendants(launch.process.pid)
        ranks = [who.pid for _, who in channels]
        return _Host(
            process=launch.process,
            start=launch.start,
            # A launcher tells others that its machine is there, and so is never stopped.
            paused=groups - groups_of_launchers(launch.process.pid, ranks),
            channel=channel,
            followers=[(who.rank, follower) for follower, who in followers],
            introduction=introduction,
            output=launch.output,
            requested_at_s=launch.requested_at_s,
            oom=launch.oom,
        )

    def _introductions(self, launch: Launch) -> list[tuple[Channel, Introduction]]:
        """The channels of all ranks of a started command, by rank."""
        arrivals = Arrivals()
        deadline_s = self._deadline_s(launch.requested_at_s)
        while not arrivals.is_complete:
            until_s = deadline_s
            if arrivals.waits_for_others:
                until_s = min(deadline_s, time.monotonic() + _MEETING_TICK_S)
            accepted = self._reception.accept(launch.start, until_s, launch.process)
            fault = None
            if accepted is not None:
                fault = arrivals.add(*accepted)
            elif time.monotonic() >= deadline_s or launch.process.poll() is not None:
                fault = self._describe_silence(launch, arrivals.introductions)
            if fault is not None:
                raise TrialFailedError(fault)
        fault = arrivals.find_fault()
        if fault is not None:
            raise TrialFailedError(fault)
        return arrivals.by_rank()

    def _deadline_s(self, requested_at_s: float) -> float:
        """Monotonic time at which what was asked for then is given up."""
        return min(
            requested_at_s + self.start_deadline_s,
            max(self.end_s, requested_at_s + self.least_patience_s),
        )

    def _describe_silence(self, launch: Launch, introductions: list[Introduction]) -> Failure:
        """Why a start that ended, or took too long, has not introduced itself, or not whole."""
        exit_code, output = launch.process.poll(), launch.output
        # An untouched script calls nothing by itself.
        failed = (
            "did not call autotune.load_config"
            if self.patch_target is None
            else "did not begin to train"
        )
        who = missing_ranks(introductions) if introductions else "the command"
        if exit_code is None:
            self._groups.abort(launch.process.pid)
            limit_s = self._deadline_s(launch.requested_at_s) - launch.requested_at_s
            message = f"{who} {failed} within {limit_s:.0f} s"
            if limit_s < self.start_deadline_s:
                message += ", the time that was left of the budget"
            return describe_hang(message, read_tail(output))
        if exit_code == 0 and (introductions or self.patch_target is not None):
            message = f"the command ended, and {who} {failed}"
            return Failure(
                cause=FailureCause.NEVER_CALLED, message=message, output=read_tail(output)
            )
        if exit_code == 0:
            return Failure(
                cause=FailureCause.NEVER_CALLED,
                message="the command ended without calling autotune.load_config: add the two "
                "calls to its training loop (see the README), or tune it as it is with --patch",
                output=read_tail(output),
            )
        return _describe_end(launch, exit_code)

    def _end_host(self, host: _Host, grace_s: float) -> int | None:
        for channel in (host.channel, *(channel for _, channel in host.followers)):
            channel.close()
        return self._end_launch(host, grace_s)

    def _end_launch(self, started: Launch | _Host, grace_s: float) -> int | None:
        exit_code = self._launcher.end(started.process, grace_s)
        self._reception.forget(started.start)
        return exit_code

    def _end_fork(self, host: _Host, pid: int, grace_s: float) -> int | None:
        """End a forked trial. Its host is its parent, and the only one who can reap it."""
        exit_code = self._reap(host, pid, grace_s) if grace_s else None
        self._groups.end(pid)
        if exit_code is None:
            self._reap(host, pid, REAP_DEADLINE_S)
        self._groups.forget(pid)
        return exit_code

    def _reap(self, host: _Host, pid: int, limit_s: float) -> int | None:
        try:
            host.channel.send(type="reap", pid=pid, limit_s=limit_s)
            answer = host.channel.receive(limit_s + REAP_DEADLINE_S).get("exit_code")
        except ChannelClosedError:
            return None
        return answer if isinstance(answer, int) else None


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
        for place in listener.places:
            groups.remove_at_end(place)
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


def _is_alike(config: ThroughputConfig, other: ThroughputConfig) -> bool:
    """Whether two configurations differ only in what can be changed in a running loop."""
    live = {"persistent_workers", *(name for name, axis in AXES.items() if axis.is_live)}
    settings, others = config.to_dict(), other.to_dict()
    return all(settings[name] == others[name] for name in settings if name not in live)


def _describe_end(started: Launch | _Host, exit_code: int | None) -> Failure:
    return describe_exit(exit_code, read_tail(started.output), oom_killed=started.oom.struck())


def _notes_beside(output: Path) -> Path:
    """Where a trial notes what it leaves, from where its output goes."""
    return output.with_name(NOTES_PREFIX + output.stem.removeprefix(OUTPUT_PREFIX))
