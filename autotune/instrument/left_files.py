"""What the steps of a trial leave in the file system, noted so that it can be removed.

A training writes checkpoints and logs in its loop. In a trial these are worth nothing, and one that
replaces the checkpoint of an earlier training would do harm. So a trial notes each file that its
steps create, and what `torch.save` or a renaming would replace stays as it is. What a loader
creates, such as a cache of decoded samples, is none of that, nor are caches of code that a step
compiles: the next trial would compile it again.
"""

from __future__ import annotations

import functools
import os
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
        self._created: set[str] = set()
        roots = (os.environ.get(name) for name in _CACHE_VARIABLES)
        # What lies in the run's own temporary directory ends with the run.
        self._caches = tuple(_absolute(root) for root in (tempfile.gettempdir(), *roots) if root)

    def install(self) -> None:
        """Keep what exists from being replaced, for the rest of the process's life."""
        for name in ("rename", "replace"):
            setattr(os, name, self._sparing_rename(getattr(os, name)))
        for name in ("torch", "torch.serialization"):
            module: Any = sys.modules.get(name)
            if module is not None:
                module.save = self._sparing_save(module.save)

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """Take an audit event into account, before what it announces happens."""
        if event == "os.rename":
            if _absolute(args[0]) in self._created:
                self._note(args[1])
        elif event in ("open", "os.mkdir", "autotune.save"):
            self._note(args[0])

    def _note(self, path: Any) -> None:  # noqa: ANN401
        if not self._in_step() or not isinstance(path, (str, bytes, os.PathLike)):
            return
        text = _absolute(path)
        if text in self._created or os.path.lexists(text) or self._is_cached(text):
            return
        self._created.add(text)
        # Not by `open`, which would announce itself.
        descriptor = os.open(self._notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, os.fsencode(text) + b"\0")
        os.close(descriptor)

    def _spares(self, path: Any) -> bool:  # noqa: ANN401
        """Whether a file is not this trial's own, and stays as it is."""
        if not self._in_step() or not isinstance(path, (str, bytes, os.PathLike)):
            return False
        text = _absolute(path)
        is_own = text in self._created or self._is_cached(text)
        return not is_own and os.path.lexists(text)

    def _is_cached(self, path: str) -> bool:
        parts = Path(path)
        below = any(parts.is_relative_to(root) for root in self._caches)
        return below or not _CACHE_NAMES.isdisjoint(parts.parts)

    def _sparing_rename(self, original: Any) -> Any:  # noqa: ANN401
        @functools.wraps(original)
        def rename(src: Any, dst: Any, **more: Any) -> None:  # noqa: ANN401
            original(src, self._elsewhere() if self._spares(dst) else dst, **more)

        return rename

    def _sparing_save(self, original: Any) -> Any:  # noqa: ANN401
        @functools.wraps(original)
        def save(obj: Any, f: Any, *args: Any, **more: Any) -> Any:  # noqa: ANN401
            sys.audit("autotune.save", f)
            return original(obj, self._elsewhere() if self._spares(f) else f, *args, **more)

        return save

    def _elsewhere(self) -> str:
        return str(Path(tempfile.gettempdir()) / "spared")


def _absolute(path: Any) -> str:  # noqa: ANN401
    return str(Path(os.fsdecode(path)).absolute())
