"""A run's own directory: its socket, what trials print, and the temporary files of trials."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# What tells a process where its temporary files go.
# Source: https://docs.python.org/3/library/tempfile.html (tempfile.gettempdir)
TEMPORARY_VARIABLES = ("TMPDIR", "TEMP", "TMP")

# Paths of Unix sockets are limited to 107 bytes (unix(7)), and libraries put theirs below TMPDIR.
# The longest that training usually makes, with the directories of a run above it, take so much:
# /autotune-xxxxxxxx/tmp (22) and /torch-shm-dir-xxxxxx/manager.sock (35), or the sockets of
# multiprocessing, /pymp-xxxxxxxx/listener-xxxxxxxx (32).
_LONGEST_PARENT = 107 - 22 - 35
_SHORT_PARENT = "/tmp"


class PrivateDirectory:
    """A directory that only this user can enter, removed with all that trials left in it.

    It is made where the user's TMPDIR says. Where that is too deep for sockets, the directory is
    made in /tmp, and the temporary files of trials lie where TMPDIR says all the same: `temporary`
    is then a link to a second directory there.

    Attributes:
        path: The directory.
        temporary: What trials get as TMPDIR.
        places: All directories that are to be removed, `path` included.
    """

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        is_deep = len(os.fsencode(parent)) > _LONGEST_PARENT
        self.path = _make(_SHORT_PARENT if is_deep else parent)
        self.temporary = self.path / "tmp"
        self.places: tuple[Path, ...] = (self.path,)
        if is_deep:
            target = _make(parent)
            self.places += (target,)
            self.temporary.symlink_to(target)
        else:
            self.temporary.mkdir()

    def remove(self) -> None:
        """Remove what can be removed at once; the guard does the rest."""
        for place in self.places:
            shutil.rmtree(place, ignore_errors=True)


def _make(parent: str) -> Path:
    return Path(tempfile.mkdtemp(prefix="autotune-", dir=parent))
