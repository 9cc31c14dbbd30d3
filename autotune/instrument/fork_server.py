"""The measured side: how a process that `autotune run` started serves its coordinator.

A host connects and says what it is. Then the coordinator either lets it run one configuration
itself (a fresh start), or has it fork a trial for each configuration, from the very point at which
the script asked for its configuration: imports, dataset and model are paid for once.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import platform
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError
from autotune.instrument import accelerator
from autotune.instrument.optimizer_watch import optimizer_exists
from autotune.instrument.rank_link import RankLink, has_store, open_link
from autotune.instrument.ranks import Place, find_place, is_initialized
from autotune.ipc.channel import CHANNEL_VARIABLE, Channel, ChannelClosedError, Message
from autotune.ipc.private_directory import TEMPORARY_VARIABLES
from autotune.measurement import FailureCause
from autotune.system.threads import (
    describe_threads,
    stop_watching,
    stop_what_can_be_stopped,
    watch_starts,
)
from autotune.system.versions import versions

# Holds the settings of a trial in the environment of what it starts.
SETTINGS_VARIABLE = "AUTOTUNE_SETTINGS"
# Of an exception's text, so many characters of each end are reported.
_LONGEST_TEXT = 8000
# How long a rank that fails waits for another that failed before.
_OTHERS_DEADLINE_S = 1.0
# How long a training that spans machines waits for all its ranks to call `load_config`.
_MEETING_DEADLINE_S = 60.0


class TrialProcess:
    """This process, while it is measured: its configuration and its line to the coordinator.

    Attributes:
        config: What runs.
        default: The script's own settings.
        has_optimizer: Whether the process had one of torch's optimizers at `load_config`.
        place: Of this process, where several train together.
        link: The line to the other ranks; None while there is none, or no others.
        root_pid: What the coordinator started: this process, or a launcher above it.
        notes: File in which it notes what its steps leave in the file system.
        num_repeated: Samples that all batches are to be drawn from, again and again; 0 for all
            that there are.
        before_failing: Called with an exception that ends the script, before it is reported.
    """

    def __init__(
        self,
        channel: Channel | None,
        config: ThroughputConfig,
        *,
        default: ThroughputConfig,
        has_optimizer: bool,
        place: Place,
        link: RankLink | None,
        root_pid: int,
        notes: Path,
        num_repeated: int,
    ) -> None:
        self.config = config
        self.default = default
        self.has_optimizer = has_optimizer
        self.place = place
        self.link = link
        self.root_pid = root_pid
        self.notes = notes
        self.num_repeated = num_repeated
        self.before_failing: Callable[[BaseException], None] = lambda _: None
        self._channel = channel
        self._previous_hook = sys.excepthook
        sys.excepthook = self._report_exception

    @property
    def leads(self) -> bool:
        """Whether this process answers for all ranks of its job."""
        return self.link.leads if self.link else self.place.rank == 0

    def find_others(self) -> None:
        """Open the line to the other ranks, where there are any.

        It is needed when the training begins: there is a store by then, if there will be any.
        """
        if self.place.world_size > 1 and self.link is None:
            self.link = open_link(find_place())
            if self.link is None:
                self.end(
                    FailureCause.RANKS_UNCLEAR,
                    f"{self.place.world_size} ranks train without torch.distributed, so that "
                    "nothing tells them of each other: call "
                    "torch.distributed.init_process_group before the training",
                )

    def send(self, **message: Any) -> None:  # noqa: ANN401
        """Send a message; without a coordinator there is nothing left to do here."""
        try:
            if self._channel is not None:
                self._channel.send(**message)
        except ChannelClosedError:
            os._exit(0)

    def receive(self) -> Message:
        """Block until the coordinator asks for something."""
        if self._channel is None:
            return self.next_order()
        try:
            return self._channel.receive()
        except ChannelClosedError:
            os._exit(0)

    def next_order(self) -> Message:
        """Block until the rank that leads gives an order; without it there is nothing to do."""
        assert self.link is not None
        try:
            return self.link.next_order()
        except RuntimeError:
            os._exit(1)

    def pass_on(self, message: Message) -> NoReturn:
        """Say what another rank said when it failed, and wait to be ended."""
        self.send(**{**message, "type": "failed"})
        while True:
            self.receive()

    def end(self, cause: str, message: str, *, setting: str | None = None) -> NoReturn:
        """Say that no more steps will come, and wait to be ended by the coordinator.

        The script must not go on: what follows its loop (a last checkpoint, an upload) belongs to
        training and not to a measurement.

        Args:
            cause: One of `measurement.FailureCause`.
            message: For the user.
            setting: The setting whose value is to blame.
        """
        self._report_failure(cause=cause, message=message, setting=setting)
        if self._channel is None:
            # Its end is what tells the others, who may wait for it in a collective call.
            _leave(1)
        while True:
            self.receive()

    def fail(self, error: BaseException) -> NoReturn:
        """Report an exception, print it, and leave at once.

        No exit handler runs: one that a forked trial inherits would remove what belongs to its
        host, such as temporary directories.
        """
        self.before_failing(error)
        text = "; ".join((str(error), *_ends_of_workers(error.__traceback__)))
        self._report_failure(error=type(error).__name__, message=_shortened(text))
        self._previous_hook(type(error), error, error.__traceback__)
        _leave(1)

    def _report_failure(self, **message: Any) -> None:  # noqa: ANN401
        """Tell the coordinator, by the rank that leads where this one does not."""
        if self.link is not None and not self.leads:
            self.link.fail(message)
        if self.link is not None and self.leads:
            # A rank that is gone makes the others fail as well: the first one says why.
            failure = self.link.find_failure(_OTHERS_DEADLINE_S)
            message = message if failure is None else failure.message
        self.send(type="failed", **message)

    def _report_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        self.fail(error.with_traceback(trace))


def _shortened(text: str) -> str:
    """Both ends of a long text: what a loader's worker raised stands at its end."""
    if len(text) <= 2 * _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}\n...\n{text[-_LONGEST_TEXT:]}"


def _ends_of_workers(trace: TracebackType | None) -> Iterator[str]:
    """How the workers of a loader ended that an exception came from: torch itself seldom tells."""
    for frame, _ in traceback.walk_tb(trace):
        found = getattr(frame.f_locals.get("self"), "__dict__", {}).get("_workers")
        for worker in found if isinstance(found, list) else ():
            code = getattr(worker, "exitcode", None)
            if code:
                yield (
                    f"a worker was killed by signal: {signal.strsignal(-code)}"
                    if code < 0
                    else f"a worker ended with exit code {code}"
                )
                return


def is_measured() -> bool:
    """Whether `autotune run` started this process, or the one that it was forked from."""
    return _trial is not None or CHANNEL_VARIABLE in os.environ


def may_be_measured() -> bool:
    """The same, or this is one of the ranks of a job that spans machines, and has not asked yet."""
    return is_measured() or (not _has_met and find_place().may_span_machines and has_store())


def settings_of_parent() -> ThroughputConfig | None:
    """The settings of the trial that started this process; None where no trial did."""
    settings = os.environ.get(SETTINGS_VARIABLE)
    return None if settings is None else ThroughputConfig(**json.loads(settings))


def current_trial() -> TrialProcess | None:
    """The trial that this process is, once it has its configuration."""
    return _trial


def become_trial(
    default: ThroughputConfig, effective_batch_size: int | None, config_path: str | None
) -> TrialProcess | None:
    """Connect to the coordinator; return once this process (or a fork of it) is a trial.

    A rank that reaches no coordinator asks the other ranks of its job, which may run on a machine
    where one is. None where none of them reaches one.
    """
    global _trial, _has_met
    if _trial is None:
        # Removed, so that a process started by the trial is not taken for another trial.
        variable = os.environ.pop(CHANNEL_VARIABLE, None)
        place = find_place()
        # Looked for before anything is forked, since it takes long.
        has_optimizer = optimizer_exists()
        link = open_link(place) if place.may_span_machines else None
        channel = _connect(variable, place, link)
        if channel is not None:
            assert variable is not None
            channel.send(
                type="hello",
                start=variable.partition(":")[0],
                pid=os.getpid(),
                rank=place.rank,
                world_size=place.world_size,
                is_distributed=place.is_distributed,
                meets=link is not None,
                default=default.to_dict(),
                effective_batch_size=effective_batch_size,
                config_path=config_path,
                default_num_threads=_default_num_threads(),
                fork_obstacle=fork_obstacle(),
                versions=versions(),
            )
        if link is not None:
            _has_met = True
            starts = _meet(
                link, None if channel is None else variable, is_told=variable is not None
            )
            if channel is not None:
                channel.send(type="met", num_remote=len(link.remote), starts=starts)
            elif len(starts) != 1:
                return None
        stop_watching()
        if channel is not None:
            assert variable is not None
            channel, order, root_pid = _serve(channel, variable.partition(":")[2])
            if link is not None and link.leads:
                link.order(**order)
            elif link is not None:
                link.next_order()
        else:
            assert link is not None
            order, root_pid = link.next_order(), os.getppid()
            # Nobody on this machine would remove what they name.
            order["notes"] = os.devnull
            for name in TEMPORARY_VARIABLES:
                # A launcher has brought it along from the coordinator's machine.
                if not Path(os.environ.get(name, os.curdir)).is_dir():
                    del os.environ[name]
        # A process that the trial starts, and that runs the script again (as each worker does that
        # is started by spawn, where there is no main guard), is to run as it will in training.
        os.environ[SETTINGS_VARIABLE] = json.dumps(order["config"])
        _trial = TrialProcess(
            channel,
            ThroughputConfig(**order["config"]),
            default=default,
            has_optimizer=has_optimizer,
            place=place,
            link=link,
            root_pid=root_pid,
            notes=Path(order["notes"]),
            num_repeated=order["num_repeated"],
        )
    return _trial


def _connect(variable: str | None, place: Place, link: RankLink | None) -> Channel | None:
    """The line to the coordinator that a variable names; None where it is on another machine.

    Raises:
        AutotuneError: It is, and there is no line to the other ranks.
    """
    if variable is None:
        return None
    try:
        return Channel.connect(variable.partition(":")[2])
    except ChannelClosedError as error:
        if link is not None:
            return None
        if place.may_span_machines:
            raise AutotuneError(
                f"rank {place.rank} runs on another machine than autotune, and torch.distributed "
                "is not initialised: call torch.distributed.init_process_group before "
                "autotune.load_config, or start the ranks with torchrun"
            ) from error
        raise


def _meet(link: RankLink, variable: str | None, *, is_told: bool) -> tuple[str, ...]:
    """Meet the other ranks; gives what tells the coordinators that they reach.

    Args:
        link: The line to them.
        variable: What tells the coordinator that this rank reaches; None if it reaches none.
        is_told: Whether the environment says that the job is measured; otherwise this is most
            likely a training, which is not held up for ever.
    """
    try:
        return link.meet(variable, None if is_told else _MEETING_DEADLINE_S)
    except RuntimeError:
        warnings.warn(
            f"autotune.load_config waited for {_MEETING_DEADLINE_S:.0f} s for the other ranks of "
            "this job: call it on every rank",
            stacklevel=4,
        )
        return ()


def fork_obstacle() -> str | None:
    """Why this process cannot be forked into trials, or None if it can.

    A fork copies only the calling thread: locks that others hold stay locked for ever, OpenMP
    waits for threads that do not exist, and a CUDA context does not survive.
    """
    if sys.platform != "linux":
        return f"forking a process that uses torch is not safe on {platform.system()}"
    if find_place().world_size > 1:
        return "several ranks start together"
    if (obstacle := accelerator.fork_obstacle()) is not None:
        return obstacle
    if is_initialized():
        return "torch.distributed is initialised when load_config is called"
    stop_what_can_be_stopped()
    return describe_threads()


_trial: TrialProcess | None = None
# Whether this rank has asked the others of its job whether they are measured.
_has_met = False


def _serve(channel: Channel, path: str) -> tuple[Channel, Message, int]:
    """Do what the coordinator says; returns in each trial, and in a host that is told to run.

    Gives the line to the coordinator, the order to run, and the root of the trial's process tree.
    """
    while True:
        try:
            message = channel.receive()
        except ChannelClosedError:
            os._exit(0)
        if message["type"] == "run":
            return channel, message, message["root_pid"]
        if message["type"] == "reap":
            channel.send(type="reaped", exit_code=_reap(message["pid"], message["limit_s"]))
            continue
        if message["type"] == "prepare":
            _prepare_to_fork()
            channel.send(type="prepared")
            continue
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            return _become_fork(channel, path, message), message, os.getpid()
        channel.send(type="forked", pid=pid)


def _reap(pid: int, limit_s: float) -> int | None:
    """The exit code of a forked trial (negative for a signal); None if it is not known (yet)."""
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            return None
        time.sleep(0.002)


def _prepare_to_fork() -> None:
    """Pay once, here, for what every trial would otherwise pay for itself."""
    importlib.import_module("autotune.instrument.loops")
    importlib.import_module("threadpoolctl")
    torch = sys.modules.get("torch")
    if torch is not None:
        # torch imports a second's worth of modules at the first optimizer.
        torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    # The collector is left alone. Whatever were done to it here, the trials would inherit and the
    # training that follows would not: with a frozen heap, loaders that make many small objects ran
    # twice as fast (docs/collector.md).


def _become_fork(host_channel: Channel, path: str, request: Mapping[str, Any]) -> Channel:
    """In the forked child: a session, an output file and a connection of its own."""
    os.setsid()
    # The host's exit handlers were inherited, and are not this process's to run.
    atexit.register(_leave, 0)
    # The host's thread variables are its own affair: what is imported or started from here on
    # should find what the user set.
    for name, value in request["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    host_channel.close()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    try:
        channel = Channel.connect(path)
        channel.send(type="trial", start=request["start"], pid=os.getpid())
    except ChannelClosedError:
        os._exit(0)
    return channel


def _leave(exit_code: int) -> NoReturn:
    """End this process without running exit handlers."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(exit_code)


def _default_num_threads() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


if CHANNEL_VARIABLE in os.environ:
    watch_starts()
