"""What the steps of a trial leave in the file system, noted so that it can be removed.

A training writes checkpoints and logs in its loop. In a trial these are worth nothing, and one that
replaces the checkpoint of an earlier training, or removes it as the oldest of some, would do harm.
So a trial notes each file that its steps create, and what was there before stays: what `torch.save`
or a renaming would replace, and what would be moved away, truncated or removed. What a loader
creates, such as a cache of decoded samples, is none of that, nor are caches of code that a step
compiles: the next trial would compile it again.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Variables that name a cache of compiled code or of downloads.
# Sources: the documentation of torch.compile, Triton, CUDA, Numba and huggingface_hub, and the XDG
# base directory specification.
_CACHE_VARIABLES = (
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "CUDA_CACHE_PATH"),
    *("NUMBA_CACHE_DIR", "HF_HOME", "XDG_CACHE_HOME"),
)
# Directories that are caches by their names.
_CACHE_NAMES = frozenset(("__pycache__", ".cache", ".triton", ".nv"))


class LeftFiles:
    """Notes the files and directories that steps create.

    Args:
        notes: File that gets their absolute paths, each followed by a zero byte.
        in_step: Whether the process is inside a step, rather than its loader or the script's
            preparations.
    """

    def __init__(self, notes: Path, in_step: Callable[[], bool]) -> None:
        self._notes = notes
        self._in_step = in_step
        # By steps, and by the trial at all.
        self._created: set[str] = set()
        self._own: set[str] = set()
        # What the script takes for removed.
        self._removed: set[str] = set()
        roots = (os.environ.get(name) for name in _CACHE_VARIABLES)
        # What lies in the run's own temporary directory ends with the run.
        self._caches = tuple(_absolute(root) for root in (tempfile.gettempdir(), *roots) if root)

    def install(self) -> None:
        """Keep what exists from being replaced or removed, for the rest of the process's life."""
        for name in ("rename", "replace"):
            setattr(os, name, self._sparing_rename(getattr(os, name)))
        for name in ("remove", "unlink", "rmdir", "truncate"):
            setattr(os, name, self._sparing_removal(getattr(os, name)))
        os.mkdir = self._pretending(os.mkdir, 0)
        for name in ("symlink", "link"):
            setattr(os, name, self._pretending(getattr(os, name), 1))
        for name in ("torch", "torch.serialization"):
            module: Any = sys.modules.get(name)
            if module is not None:
                module.save = self._sparing_save(module.save)

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """Take an audit event into account, before what it announces happens.

        Raises:
            PermissionError: A script that has taken a function from `os` before removes what is not
                the trial's.
        """
        if event == "os.rename":
            if self._is_own(_absolute(args[0], args[2])):
                self._note(args[1], args[3])
        elif event in ("os.symlink", "os.link"):
            self._note(args[1], args[-1])
        elif event in ("open", "os.mkdir", "autotune.save"):
            self._note(args[0], args[2] if event == "os.mkdir" else -1)
        elif event in ("os.remove", "os.rmdir") and self._spares(args[0], args[1]):
            raise PermissionError(
                f"a trial must not remove {_absolute(args[0], args[1])}, which was there before: "
                "remove nothing where autotune.is_trial()"
            )

    def _note(self, path: Any, directory: int | None) -> None:  # noqa: ANN401
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        text = _absolute(path, directory)
        if text in self._own or os.path.lexists(text) or self._is_cached(text):
            return
        self._own.add(text)
        if not self._in_step():
            return
        self._created.add(text)
        # Not by `open`, which would announce itself.
        descriptor = os.open(self._notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, os.fsencode(text) + b"\0")
        os.close(descriptor)

    def _spares(self, path: Any, directory: int | None = None) -> bool:  # noqa: ANN401
        """Whether a file is not this trial's own, and stays as it is."""
        if not self._in_step() or _is_loader_worker():
            return False
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        text = _absolute(path, directory)
        return not (self._is_own(text) or self._is_cached(text)) and os.path.lexists(text)

    def _is_own(self, path: str) -> bool:
        """Whether the trial created it, or a directory that holds it."""
        return not self._own.isdisjoint((path, *map(str, Path(path).parents)))

    def _is_cached(self, path: str) -> bool:
        parts = Path(path)
        below = any(parts.is_relative_to(root) for root in self._caches)
        return below or not _CACHE_NAMES.isdisjoint(parts.parts)

    def _sparing_rename(self, original: Any) -> Any:  # noqa: ANN401
        @functools.wraps(original)
        def rename(
            src: Any,  # noqa: ANN401
            dst: Any,  # noqa: ANN401
            *,
            src_dir_fd: int | None = None,
            dst_dir_fd: int | None = None,
        ) -> None:
            if self._spares(src, src_dir_fd):
                self._removed.add(_absolute(src, src_dir_fd))
            elif self._spares(dst, dst_dir_fd):
                _discard(_absolute(src, src_dir_fd))
            else:
                original(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        return rename

    def _sparing_removal(self, original: Any) -> Any:  # noqa: ANN401
        @functools.wraps(original)
        def remove(path: Any, *args: Any, **more: Any) -> None:  # noqa: ANN401
            if self._spares(path, more.get("dir_fd")):
                self._removed.add(_absolute(path, more.get("dir_fd")))
            else:
                original(path, *args, **more)

        return remove

    def _pretending(self, original: Any, place: int) -> Any:  # noqa: ANN401
        """What creates something, at a place of its arguments; not over what only seems removed."""

        @functools.wraps(original)
        def create(*args: Any, **more: Any) -> None:  # noqa: ANN401
            if (
                len(args) <= place
                or _absolute(args[place], more.get("dir_fd")) not in self._removed
            ):
                original(*args, **more)

        return create

    def _sparing_save(self, original: Any) -> Any:  # noqa: ANN401
        @functools.wraps(original)
        def save(obj: Any, f: Any, *args: Any, **more: Any) -> Any:  # noqa: ANN401
            sys.audit("autotune.save", f)
            return original(obj, self._elsewhere() if self._spares(f) else f, *args, **more)

        return save

    def _elsewhere(self) -> str:
        return str(Path(tempfile.gettempdir()) / "spared")


def _absolute(path: Any, directory: int | None = None) -> str:  # noqa: ANN401
    """An absolute path; `directory` is what a relative one starts from, as `dir_fd` says it."""
    found = Path(os.fsdecode(path))
    if directory is not None and directory >= 0 and not found.is_absolute():
        found = Path(f"/proc/self/fd/{directory}").resolve() / found
    return str(found.absolute())


def _is_loader_worker() -> bool:
    module = sys.modules.get("torch.utils.data")
    return module is not None and module.get_worker_info() is not None


def _discard(path: str) -> None:
    """Remove a trial's own file or directory."""
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)  # noqa: PTH108 - by what may be wrapped, for what is its own.
