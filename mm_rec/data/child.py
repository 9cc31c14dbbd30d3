"""Work in a process of its own, of which nothing is left."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from mm_rec.errors import DataError, MmRecError

# Work that is over sooner says nothing.
TOLD_AFTER_S = 2.0
# Source: prctl(2).
PR_SET_PDEATHSIG = 1


def in_child(work: Callable[[], None], *, told: str) -> None:
    """Do something in a process of its own, so that its threads and memory are gone afterwards.

    It is forked, since a fresh interpreter would import torch; where another Python thread runs,
    which may hold a lock that the child would wait for, the work is done here.

    Args:
        work: Raises an `MmRecError` where it fails.
        told: Printed if it takes more than a moment.

    Raises:
        MmRecError: What the work raised.
        DataError: The process was killed.
    """
    if threading.active_count() > 1 or multiprocessing.current_process().daemon:
        work()
        return
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(work, sender, os.getpid()))
    child.start()
    sender.close()
    try:
        if told and not receiver.poll(TOLD_AFTER_S):
            print(told, file=sys.stderr)
        failure = receiver.recv()
    except EOFError as error:
        child.join()
        raise DataError(
            f"the process that prepares the data was killed (exit code {child.exitcode}), by "
            "somebody or for want of memory: start again"
        ) from error
    finally:
        child.terminate()
        child.join()
    if failure is not None:
        raise failure


def _run(work: Callable[[], None], sender: Connection, parent_pid: int) -> None:
    if sys.platform == "linux":
        # However the parent ends, nothing is left.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            return
    try:
        work()
        sender.send(None)
    except MmRecError as error:
        sender.send(error)
    except KeyboardInterrupt:
        # The parent got it as well.
        pass
