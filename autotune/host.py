"""The measured side: how a process that `autotune run` started serves its coordinator.

A host connects and says what it is. Then the coordinator either lets it run one configuration
itself (a fresh start), or has it fork a trial for each configuration, from the very point at which
the script asked for its configuration: imports, dataset and model are paid for once.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from autotune.channel import CHANNEL_VARIABLE, Channel, ChannelClosedError, Message
from autotune.config import ThroughputConfig

_TASKS = Path("/proc/self/task")


class TrialProcess:
    """This process, while it is measured: its configuration and its line to the coordinator.

    Attributes:
        config: What runs.
        rank: Of this process, where several train together.
        root_pid: What the coordinator started: this process, or a launcher above it.
    """

    def __init__(
        self, channel: Channel, config: ThroughputConfig, *, rank: int, root_pid: int
    ) -> None:
        self.config = config
        self.rank = rank
        self.root_pid = root_pid
        self._channel = channel
        self._previous_hook = sys.excepthook
        sys.excepthook = self._report_exception

    def send(self, **message: Any) -> None:  # noqa: ANN401
        """Send a message; without a coordinator there is nothing left to do here."""
        try:
            self._channel.send(**message)
        except ChannelClosedError:
            os._exit(0)

    def receive(self) -> Message:
        """Block until the coordinator asks for something."""
        try:
            return self._channel.receive()
        except ChannelClosedError:
            os._exit(0)

    def end(self, cause: str, message: str) -> NoReturn:
        """Say that no more steps will come, and wait to be ended by the coordinator.

        The script must not go on: what follows its loop (a last checkpoint, an upload) belongs to
        training and not to a measurement.
        """
        self.send(type="failed", cause=cause, message=message)
        while True:
            self.receive()

    def _report_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        text = "; ".join((str(error), *_ends_of_workers(trace)))
        self.send(type="failed", error=kind.__name__, message=text[:2000])
        self._previous_hook(kind, error, trace)


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


def current_trial() -> TrialProcess | None:
    """The trial that this process is, once it has its configuration."""
    return _trial


def become_trial(
    default: ThroughputConfig, effective_batch_size: int | None, config_path: str | None
) -> TrialProcess:
    """Connect to the coordinator; return once this process (or a fork of it) is a trial."""
    global _trial
    if _trial is None:
        # Removed, so that a process started by the trial is not taken for another trial.
        start, _, path = os.environ.pop(CHANNEL_VARIABLE).partition(":")
        rank = int(os.environ.get("RANK", "0"))
        channel = Channel.connect(path)
        channel.send(
            type="hello",
            start=start,
            pid=os.getpid(),
            rank=rank,
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            default=default.to_dict(),
            effective_batch_size=effective_batch_size,
            config_path=config_path,
            default_num_threads=_default_num_threads(),
            fork_obstacle=fork_obstacle(),
            uses_cuda=_uses_cuda(),
            versions=_versions(),
        )
        # Loader workers make sockets in multiprocessing's directory of temporary files, and nobody
        # removes it when they are killed. The coordinator's own goes with the coordinator.
        process: Any = multiprocessing.current_process()
        process._config["tempdir"] = str(Path(path).parent)
        channel, config, root_pid = _serve(channel, path)
        _trial = TrialProcess(channel, config, rank=rank, root_pid=root_pid)
    return _trial


def fork_obstacle() -> str | None:
    """Why this process cannot be forked into trials, or None if it can.

    A fork copies only the calling thread: locks that others hold stay locked for ever, OpenMP
    waits for threads that do not exist, and a CUDA context does not survive.
    """
    if sys.platform != "linux":
        return f"forking a process that uses torch is not safe on {platform.system()}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "several ranks start together"
    num_threads = len(list(_TASKS.iterdir())) if _TASKS.is_dir() else threading.active_count()
    if num_threads > 1:
        return f"{num_threads} threads run when load_config is called"
    if _uses_cuda():
        return "CUDA is initialised when load_config is called"
    return None


_trial: TrialProcess | None = None


def _serve(channel: Channel, path: str) -> tuple[Channel, ThroughputConfig, int]:
    """Do what the coordinator says; returns in each trial, and in a host that is told to run.

    Gives the line to the coordinator, what is to run, and the root of the trial's process tree.
    """
    while True:
        try:
            message = channel.receive()
        except ChannelClosedError:
            os._exit(0)
        if message["type"] == "run":
            return channel, ThroughputConfig(**message["config"]), message["root_pid"]
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
            config = ThroughputConfig(**message["config"])
            return _become_fork(channel, path, message), config, os.getpid()
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


def _uses_cuda() -> bool:
    """Whether the script has put anything on a GPU; asking does not touch CUDA."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _default_num_threads() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def _versions() -> dict[str, str]:
    torch = sys.modules.get("torch")
    versions = {"python": platform.python_version()}
    if torch is not None:
        versions["torch"] = str(torch.__version__)
    return versions
