"""What a failed process's last words and its end say of the cause, and of the remedy."""

from __future__ import annotations

import dataclasses
import re
import resource
import signal

from autotune.measurement import Failure, FailureCause
from autotune.system.memory import SHARED_MEMORY, shared_memory_bytes
from autotune.trials.stacks import where_it_stood

# In this order: "out of memory" may be part of a text that says more.
# Sources: torch's c10/core/impl/alloc_cpu.cpp, c10/cuda/CUDACachingAllocator.cpp,
# aten/src/ATen/MapAllocator.cpp and torch/utils/data (dataloader.py, _utils/signal_handling.py).
_CAUSES = {
    FailureCause.OUT_OF_DEVICE_MEMORY: r"(CUDA|HIP|MPS|XPU)( backend)?( error:)? out of memory",
    FailureCause.OUT_OF_SHARED_MEMORY: r"Bus error|out of shared memory|shared memory\(shm\)"
    r"|</?torch_\w+>.*No space left",
    FailureCause.TOO_MANY_FILES: r"Too many open files|received \d+ items of ancdata",
    FailureCause.OUT_OF_MEMORY: r"can't allocate memory|not enough memory|[Oo]ut of memory"
    r"|Cannot allocate memory",
}
# What torch and the CUDA driver say in a process that was forked after the driver was initialised.
# Sources: torch/cuda/__init__.py, _lazy_init; c10/cuda/CUDAException.h; torch/csrc/cuda/Module.cpp.
_AFTER_FORK = (
    r"Cannot re-initialize \w+ in forked subprocess|CUDA error: initialization error"
    r"|CUDA driver initialization failed|Unexpected error from cudaGetDeviceCount"
)
# A loader's worker that was killed is reported by its parent.
_KILLED_WORKER = r"killed by signal: (Killed|Terminated)"
# A rank that is gone breaks the connections of all others. Sources: gloo/transport/tcp/pair.cc;
# torch's c10d/NCCLUtils.hpp.
_RANK_GONE = r"(?:gloo/.*|NCCL.*)(Connection (?:reset|closed) by peer|remote process exited)"
# What torchrun prints of the rank that failed first. Source: torch's
# distributed/elastic/multiprocessing/errors/__init__.py.
_TORCHRUN = re.compile(
    r"^Root Cause.*^\s*rank\s*: (\d+) .*?^\s*exitcode\s*: (-?\d+)", re.MULTILINE | re.DOTALL
)
# How torch passes on what a worker raised: the worker's traceback is part of the text.
# Source: torch/_utils.py, ExceptionWrapper.
_CAUGHT = re.compile(r"Caught \w+ in DataLoader worker process \d+\.")
_TRACEBACK = re.compile(r"^.*Traceback \(most recent call last\):$", re.MULTILINE)
# Source: the pickle module of Python 3.11 to 3.14, in Python and in C.
_CANNOT_PICKLE = re.compile(r"[Cc]an(?:no|')t pickle|Can't get local object")
# The modules of multiprocessing that pickle what a new process needs.
_PICKLING_START = re.compile(r"popen_(spawn|forkserver)")
# Sources: multiprocessing/spawn.py, _check_not_importing_main; autotune.steps.
_NO_MAIN_GUARD = re.compile(
    r"has finished its bootstrapping phase|Safe importing of main module"
    r"|autotune\.steps was called while a new process imports the script"
)
_GUARD_REMEDY = (
    'the script has no `if __name__ == "__main__":` guard: a new process that is not forked runs '
    "the whole script again, so that num_workers > 0 fails"
)
# Signals that a process's own code causes. Source: signal(7).
_OWN_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
)
# What a launcher such as a shell adds to the number of the signal that ended its child.
_SHELL_SIGNAL = 128


def describe_exception(name: str, detail: str, output: str, *, oom_killed: bool) -> Failure:
    """The failure behind an exception in the user's code.

    Args:
        name: Of its type.
        detail: Its text.
        output: The end of what the process printed.
        oom_killed: Whether the kernel ended processes meanwhile since memory ran out.
    """
    cause = FailureCause.CRASHED
    if re.search(_KILLED_WORKER, detail):
        cause = FailureCause.OUT_OF_MEMORY if oom_killed else FailureCause.KILLED
    elif name == "MemoryError":
        cause = FailureCause.OUT_OF_MEMORY
    elif name == "OutOfMemoryError":
        cause = FailureCause.OUT_OF_DEVICE_MEMORY
    elif re.search(_AFTER_FORK, detail) and not _CAUGHT.search(detail):
        cause = FailureCause.DEVICE_AFTER_FORK
    elif (gone := re.search(_RANK_GONE, detail)) is not None:
        message = f"another rank of the job is gone ({gone[1]})"
        return Failure(cause=FailureCause.KILLED, message=message, output=output)
    for candidate, pattern in _CAUSES.items():
        if cause is FailureCause.CRASHED and re.search(pattern, detail):
            cause = candidate
    if _NO_MAIN_GUARD.search(detail) or _NO_MAIN_GUARD.search(output):
        return Failure(cause=cause, message=_GUARD_REMEDY, output=output, setting="num_workers")
    text = _in_worker(detail) or _with_name(name, _headline(detail))
    return Failure(cause=cause, message=text + _remedy(cause, text, output), output=output)


def describe_exit(exit_code: int | None, output: str, *, oom_killed: bool) -> Failure:
    """What a process's end says of its cause.

    Args:
        exit_code: As Python gives it, negative for a signal; None where it did not end by itself.
        output: The end of what it printed.
        oom_killed: As for `describe_exception`.
    """
    if _NO_MAIN_GUARD.search(output):
        return Failure(cause=FailureCause.CRASHED, message=_GUARD_REMEDY, output=output)
    told = _TORCHRUN.search(output)
    # Having said so, a busy machine's launcher may still take its time to end.
    if told is not None and exit_code in (1, None):
        failure = describe_exit(int(told[2]), "", oom_killed=oom_killed)
        return dataclasses.replace(
            failure, message=f"rank {told[1]} {failure.message}", output=output
        )
    number = -exit_code if exit_code is not None and exit_code < 0 else None
    if exit_code is not None and exit_code > _SHELL_SIGNAL:
        number = exit_code - _SHELL_SIGNAL
    if exit_code is None:
        message = (
            "closed its connection to autotune and did not end: did a process below its launcher "
            "crash, or does it close file descriptors that are not its own?"
        )
        cause = FailureCause.CRASHED
    elif number not in set(signal.Signals):
        message, cause = f"ended with exit code {exit_code}", FailureCause.CRASHED
    else:
        message, cause = f"ended by signal {signal.Signals(number).name}", FailureCause.KILLED
        if number in _OWN_SIGNALS:
            cause = FailureCause.CRASHED
        if number == signal.SIGKILL and oom_killed:
            message += ": the kernel does this when memory runs out, and did"
            cause = FailureCause.OUT_OF_MEMORY
        elif number == signal.SIGBUS:
            cause = FailureCause.OUT_OF_SHARED_MEMORY
        elif place := where_it_stood(output):
            message += f" at {place}"
    return Failure(cause=cause, message=message + _remedy(cause, message, output), output=output)


def describe_hang(message: str, output: str) -> Failure:
    """What a process that was aborted says of where it hung."""
    place = where_it_stood(output)
    where = f"; it hung at {place}" if place else ""
    return Failure(cause=FailureCause.TIMED_OUT, message=message + where, output=output)


def _in_worker(detail: str) -> str | None:
    """What a loader's worker raised, on one line; None where the text is not about that.

    It is the last exception of the innermost traceback: the first line after it that is not
    indented.
    """
    if not _CAUGHT.search(detail):
        return None
    *_, last = _TRACEBACK.split(detail)
    lines = last.splitlines()
    raised = next((n for n, line in enumerate(lines) if line[:1].strip()), None)
    if raised is None:
        return None
    return _headline("\n".join(lines[raised:])) + " (in a loader worker)"


def _with_name(name: str, headline: str) -> str:
    return f"{name}: {headline}" if headline else name


def _headline(text: str) -> str:
    """The first line of a text, with the next one where it only announces that."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    announces = len(lines) > 1 and lines[0].endswith(":")
    return " ".join(lines[: 1 + announces])


def _remedy(cause: FailureCause, message: str, output: str) -> str:
    """What to do about a failure, in parentheses; empty where that is not known."""
    method = _PICKLING_START.search(output)
    if method is not None and _CANNOT_PICKLE.search(message):
        return (
            f" (the start method {method[1]} pickles the dataset for each worker, so that "
            "num_workers > 0 needs one without lambdas, local functions and locks)"
        )
    if cause is FailureCause.TOO_MANY_FILES:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f" (a process may open {limit} files here: raise that with `ulimit -n`, or allow "
            "fewer workers)"
        )
    if cause is FailureCause.OUT_OF_SHARED_MEMORY:
        size = shared_memory_bytes()
        holds = "" if size is None else f" holds {size / 2**20:,.0f} MiB"
        return (
            f" ({SHARED_MEMORY}{holds}: make it larger, for a container with --shm-size, or allow "
            "fewer workers and smaller batches)"
        )
    return ""
