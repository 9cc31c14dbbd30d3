"""Stops a trial before anything of it reaches the world after its training loop.

A trial is ended in the middle of its training. Where the loop ends by itself before that, or fails,
what the script does next belongs to training: a last checkpoint, an upload, the removal of a
temporary directory that a forked trial shares with all others. So the trial stops at the first such
operation, before it happens.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Raised before the operation. Source: https://docs.python.org/3/library/audit_events.html
_EVENTS = frozenset(
    {
        *("open", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"),
        *("os.truncate", "os.chmod", "os.chown", "os.utime", "os.exec", "os.posix_spawn"),
        *("os.system", "os.spawn", "os.kill", "subprocess.Popen", "socket.connect"),
        *("socket.sendto", "socket.sendmsg", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
        *("tempfile.mkstemp", "tempfile.mkdtemp", "sqlite3.connect", "urllib.Request"),
        *("smtplib.send", "ftplib.sendcmd", "autotune.save"),
    }
)
# What writes files without Python's knowledge, by module and function; `torch.save` announces
# itself (see `left_files`).
_SAVING = (
    ("torch.jit", "save"),
    ("safetensors.torch", "save_file"),
    ("cv2", "imwrite"),
)
_WRITING_MODES = frozenset("wax+")
_WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HARMLESS = ("/dev/", "/proc/")


class EffectGuard:
    """Watches what this process is about to do to files, processes and the network.

    Args:
        check: Called before each such operation, with its audit event. It returns where the
            operation belongs to the training, and never returns otherwise.
        end: Called at the end of the interpreter, with the code given to `sys.exit`.
    """

    def __init__(
        self, check: Callable[[str, tuple[Any, ...]], None], end: Callable[[object], None]
    ) -> None:
        self._check = check
        self._end = end
        self._exit_code: object = None
        self._pid = os.getpid()
        # By thread: what one does while another is checked counts as well.
        self._checking = threading.local()

    def install(self) -> None:
        """Begin; for the rest of the process's life."""
        sys.addaudithook(self._before)
        for module_name, name in _SAVING:
            module = sys.modules.get(module_name)
            original = getattr(module, name, None)
            if original is not None:
                setattr(module, name, _announced(original))
        sys.exit = self._noted(sys.exit)
        # Called before all that was registered earlier: what a fork inherits is never run.
        atexit.register(self._at_exit)
        os.register_at_fork(after_in_child=self._forget)

    def _before(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not self._pid:
            return
        if event == "open" and not _writes(*args):
            return
        if getattr(self._checking, "goes_on", False):
            return
        self._checking.goes_on = True
        try:
            self._check(event, args)
        finally:
            self._checking.goes_on = False

    def _at_exit(self) -> None:
        if self._pid == os.getpid():
            self._end(self._exit_code)

    def _noted(self, original: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
        @functools.wraps(original)
        def leave(code: object = None, /) -> NoReturn:
            self._exit_code = code
            original(code)

        return leave

    def _forget(self) -> None:
        # A loader's worker, or another child of the script.
        self._pid = 0


def _writes(path: Any, mode: str | None, flags: int) -> bool:  # noqa: ANN401
    if isinstance(path, int) or str(path).startswith(_HARMLESS):
        return False
    return bool(_WRITING_MODES & set(mode)) if mode else bool(flags & _WRITING_FLAGS)


def _announced(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        given = (*args, *kwargs.values())
        sys.audit("autotune.save", next((a for a in given if isinstance(a, (str, Path))), None))
        return original(*args, **kwargs)

    return save
