"""Names the threads of this process that keep it from being forked, with the remedy for each."""

from __future__ import annotations

import functools
import re
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from autotune.system.native_threads import libraries_of, name_of, task_ids
from autotune.system.own_code import is_own_code

_LATER = "start it after load_config"
_MAIN = ("the main thread", "call load_config in it")
# Python threads by the package of their class or function, or by their name: what to call them and
# what to do. Seen with tensorboard 2.21 and Python 3.11.
_PYTHON = {
    "tensorboard": ("TensorBoard's writer", "make the SummaryWriter after load_config"),
    "QueueFeederThread": (
        "a queue of multiprocessing",
        "end the loader or the processes that use it before load_config",
    ),
}
# Native threads by their name, and the path of the library that they wait in. Seen with opencv 5.0,
# torch 2.13 and numpy 2.4.
_NATIVE = (
    (r"/cv2/|libopencv", "OpenCV", "call cv2.setNumThreads(0) right after importing cv2"),
    (r"libgomp|libi?omp5?\b|libmkl", "OpenMP", "leave thread counts to load_config"),
    (r"openblas|libblis", "BLAS", "leave thread counts to load_config"),
    (r"libcudart|libnccl|libnvidia", "CUDA", "use the GPU after load_config only"),
    (
        r"libtorch|libc10",
        "torch",
        "leave thread counts to load_config, and run no backward pass before it",
    ),
)
# Threads that processes are forked beside without harm: where torch.cuda.is_available() asks NVML,
# a thread of the CUDA driver begins that waits, while the driver itself is not initialised (seen
# with driver 580; a forked process used the GPU). Whether it is initialised, it is asked itself:
# see `accelerator.fork_obstacle`. The pool of tokenizers is left alone by a forked process, which
# then encodes without it, and those of Arrow are made anew there, as is jemalloc's thread, which
# `import datasets` leaves (tried with tokenizers 0.23 and pyarrow 26). Where a trial is slower for
# it than training will be, the comparison of the first forked trial with a fresh one shows.
_HARMLESS = re.compile(
    r"^jemalloc_bg_thd |libnvidia-ml|libcuda\.so|/tokenizers/|libarrow|/pyarrow/"
)
# Threads that compute, and load nothing.
_COMPUTING = re.compile(
    r"^jemalloc_bg_thd |libgomp|libi?omp5?\b|libmkl|openblas|libblis|libtorch|libc10|libcuda"
)
_ELSE = "use it after load_config only"
_MOST_NAMED = 3

_started_at: weakref.WeakKeyDictionary[threading.Thread, str] = weakref.WeakKeyDictionary()
_unwatched: Callable[[threading.Thread], None] | None = None


def watch_starts() -> None:
    """Remember from here on which line of the person's own code starts a thread."""
    global _unwatched
    if _unwatched is not None:
        return
    _unwatched = original = threading.Thread.start

    @functools.wraps(original)
    def start(thread: threading.Thread) -> None:
        place = _own_line(sys._getframe(1))
        if place is not None:
            _started_at[thread] = place
        original(thread)

    threading.Thread.start = start  # type: ignore[method-assign, assignment]


def stop_watching() -> None:
    """Undo `watch_starts`: what is measured runs as it would without it."""
    global _unwatched
    if _unwatched is not None:
        threading.Thread.start = _unwatched  # type: ignore[method-assign, assignment]
        _unwatched = None


def stop_what_can_be_stopped() -> None:
    """Stop threads that begin again when they are needed: tqdm's monitor, with the next bar.

    `from_pretrained`, `load_dataset` and `Dataset.map` show bars, and leave one.
    Source: tqdm's `std.py` (`tqdm.__new__`) and `_monitor.py` (`TMonitor.exit`).
    """
    tqdm: Any = sys.modules.get("tqdm")
    if tqdm is not None:
        for thread in threading.enumerate():
            if isinstance(thread, tqdm.TMonitor):
                thread.exit()


def describe_threads() -> str | None:
    """The threads that run beside the calling one, and what to do about each; None if none do.

    Such as "2 threads run when load_config is called: OpenCV x 2 (call cv2.setNumThreads(0) right
    after importing cv2)".
    """
    calling = threading.current_thread()
    python = [thread for thread in threading.enumerate() if thread is not calling]
    known = {calling.native_id, *(thread.native_id for thread in python)}
    libraries = libraries_of(task for task in task_ids() if task not in known)
    # The kernel lists a thread for a moment after Python has seen it end.
    there = frozenset(task_ids())
    native = [
        (task, path)
        for task, path in libraries.items()
        if task in there and not _HARMLESS.search(f"{name_of(task)} {path}")
    ]
    number = len(python) + len(native)
    if not number:
        return None
    kinds = Counter(
        [*map(_describe_python, python), *(_describe_native(*found) for found in native)]
    )
    named = [
        f"{name}{f' x {count}' if count > 1 else ''} ({remedy})"
        for (name, remedy), count in kinds.most_common(_MOST_NAMED)
    ]
    if len(kinds) > _MOST_NAMED:
        named.append(f"{len(kinds) - _MOST_NAMED} more kinds")
    run = "threads run" if number > 1 else "thread runs"
    return f"{number} {run} when load_config is called: {'; '.join(named)}"


def may_load() -> bool:
    """Whether this process has a thread beside the calling one that may be there to load data.

    A pool that computes is none; of what cannot be told it is taken to be one.
    """
    current = threading.current_thread()
    if any(thread is not current for thread in threading.enumerate()):
        return True
    # Asked of the kernel: what a thread remembers of itself is wrong after a fork.
    native = libraries_of(task for task in task_ids() if task != threading.get_native_id())
    return not all(
        _COMPUTING.search(f"{name_of(task)} {library}") for task, library in native.items()
    )


def _describe_python(thread: threading.Thread) -> tuple[str, str]:
    """What to call a Python thread, and what to do about it."""
    if thread is threading.main_thread():
        return _MAIN
    function = getattr(thread, "_target", None)
    modules = (type(thread).__module__, str(getattr(function, "__module__", "")))
    packages = {module.partition(".")[0] for module in modules}
    known = next((_PYTHON[key] for key in (*packages, thread.name) if key in _PYTHON), None)
    if known is None:
        kind = type(thread).__name__
        known = f"{thread.name}{'' if kind == 'Thread' else f', a {kind}'}", _LATER
    name, remedy = known
    place = _started_at.get(thread)
    return f"{name}, started at {place}" if place else name, remedy


def _describe_native(task: int, path: str | None) -> tuple[str, str]:
    """What to call a native thread that waits in a library, and what to do about it."""
    if path is None:
        return "a native thread of a library", _ELSE
    for pattern, name, remedy in _NATIVE:
        if re.search(pattern, f"{name_of(task)} {path}"):
            return name, remedy
    parts = Path(path).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].partition(".")[0], _ELSE
    return Path(path).name, _ELSE


def _own_line(frame: FrameType | None) -> str | None:
    while frame is not None:
        if is_own_code(frame.f_code.co_filename):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return None
