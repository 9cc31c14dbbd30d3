"""Tasks in forked processes, their results handed over in order.

Processes are forked: a fresh interpreter would import torch with this package (a second each) and
leave its resource tracker behind as a child. A fork needs neither, and this pool, unlike the
standard library's, has no threads of its own. When it is done, nothing of it is left.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

from mm_rec.data.reading import Report
from mm_rec.errors import DataError, MmRecError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
# Results that wait for an earlier one, per process: bounds the memory they take.
NUM_AHEAD = 4
# A process reports its progress about so often, in bytes read.
REPORT_BYTES = 2**20
# Source: prctl(2).
PR_SET_PDEATHSIG = 1


def default_num_processes() -> int:
    """Return the number of usable cores, 1 where forking is not safe.

    It is not while another Python thread runs: it may hold a lock that the child needs and that
    nobody would ever release there. The idle native threads of numpy and torch do no harm, since
    the child uses neither's.
    """
    alone = threading.active_count() == 1 and not multiprocessing.current_process().daemon
    return len(os.sched_getaffinity(0)) if alone and sys.platform == "linux" else 1


def run_in_order(
    function: Callable[[TaskT, Report], ResultT],
    tasks: Sequence[TaskT],
    *,
    consume: Callable[[ResultT], None],
    report: Report,
    num_processes: int,
) -> None:
    """Call `function` on every task and `consume` on every result, in the order of the tasks.

    With one process, or one task, everything happens in this process.

    Args:
        function: Gets a task and a function to report bytes with. It may be a closure; only
            results and errors are sent between processes.
        tasks: What to do.
        consume: Called in this process.
        report: Called in this process with numbers of bytes read.
        num_processes: Processes at most.

    Raises:
        DataError: A process was killed from outside.
        Exception: Whatever `function` raised first.
    """
    num_processes = min(num_processes, len(tasks))
    if num_processes <= 1:
        for task in tasks:
            consume(function(task, report))
        return
    workers: list[_Worker] = []
    try:
        with _signals_held_back():
            for _ in range(num_processes):
                workers.append(_start(function, tasks, workers))
        _hand_out(workers, len(tasks), consume, report)
    finally:
        for worker in workers:
            worker.stop()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection[Any, Any]

    def send(self, number: int) -> None:
        try:
            self.connection.send(number)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Any:  # noqa: ANN401
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error

    def _death(self) -> DataError:
        self.process.join()
        return DataError(
            f"a process that read the data ended with code {self.process.exitcode} (-9: it was "
            "killed, most often for want of memory): give this command fewer cores (taskset)"
        )

    def stop(self) -> None:
        # It holds nothing that would need cleaning up: files appear under their names only when
        # their task is done, and the directory they are in is this process' affair.
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()


def _hand_out(
    workers: Sequence[_Worker], num_tasks: int, consume: Callable[[Any], None], report: Report
) -> None:
    by_connection = {worker.connection: worker for worker in workers}
    idle = list(workers)
    done: dict[int, Any] = {}
    sent = consumed = 0
    while consumed < num_tasks:
        while idle and sent < min(num_tasks, consumed + NUM_AHEAD * len(workers)):
            idle.pop().send(sent)
            sent += 1
        for connection in wait(list(by_connection)):
            worker = by_connection[cast("Connection[Any, Any]", connection)]
            message = worker.receive()
            if isinstance(message, int):
                report(message)
                continue
            number, result, error = message
            if error is not None:
                raise error
            done[number] = result
            idle.append(worker)
        while consumed in done:
            consume(done.pop(consumed))
            consumed += 1


def _start(
    function: Callable[[Any, Report], Any], tasks: Sequence[Any], others: Sequence[_Worker]
) -> _Worker:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    inherited = [here, *(worker.connection for worker in others)]
    process = context.Process(
        target=_serve, args=(function, tasks, there, inherited, os.getpid()), daemon=True
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of every native thread: see `default_num_processes`.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            process.start()
        except OSError as error:
            raise DataError(
                f"cannot start a process to read the data: {error.strerror}; give this command "
                "fewer cores (taskset)"
            ) from error
    there.close()
    return _Worker(process=process, connection=here)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the processes are known, so that none is forgotten."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _serve(
    function: Callable[[Any, Report], Any],
    tasks: Sequence[Any],
    connection: Connection[Any, Any],
    inherited: Sequence[Connection[Any, Any]],
    parent_pid: int,
) -> None:
    """Be a worker: get numbers of tasks, send results."""
    # Ctrl-C on a terminal reaches every process; it is the parent's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # However the parent ends, nothing is left.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    for other in inherited:
        other.close()
    meter = _Meter(connection)
    while True:
        number = connection.recv()
        answer: tuple[int, Any, Exception | None]
        try:
            answer = (number, function(tasks[number], meter.add), None)
        except Exception as error:
            if not isinstance(error, MmRecError):
                error.add_note(traceback.format_exc())
            answer = (number, None, error)
        meter.flush()
        connection.send(answer)


class _Meter:
    """Adds up what is reported, so that few messages are sent."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes >= REPORT_BYTES:
            self.flush()

    def flush(self) -> None:
        self._connection.send(self._num_bytes)
        self._num_bytes = 0
