"""Ends what a coordinator left behind when it was killed: process groups and its directories.

Runs as a process of its own (`python watchdog.py`), with nothing but the standard library. It reads
lines: "+GROUP" and "-GROUP" for groups that live, "@NAME=VALUE" for what the environment of all
that was started holds, "=DIRECTORY" for what is to go with the coordinator. When the pipe ends, it
kills the groups that remain, and daemons that left them, and removes the directories. Nothing that
happens to the coordinator can keep it from doing so, `kill -9` included.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Set
from pathlib import Path

# In the command line of multiprocessing's resource tracker, and in that of joblib's copy of it. It
# unlinks the named semaphores and shared memory of the processes that hold its pipe when all of
# these are gone. So whoever kills them must let it live for that long.
# Source: multiprocessing/resource_tracker.py (ensure_running, main).
RESOURCE_TRACKER = "resource_tracker import main"
# Unlinking takes milliseconds, unless a process that cannot be killed holds the pipe as well.
TRACKER_DEADLINE_S = 2.0
# In its directory a trial notes the files that its steps create, in a file of this name and the
# start's number: their absolute paths, each followed by a zero byte.
NOTES_PREFIX = "left-"


def main() -> None:
    """Read lines until the coordinator is gone; then kill what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    directories: list[str] = []
    marks: set[bytes] = set()
    for line in sys.stdin:
        if line[0] == "+":
            groups.add(int(line[1:]))
        elif line[0] == "-":
            groups.discard(int(line[1:]))
        elif line[0] == "@":
            marks.add(line[1:].rstrip("\n").encode())
        else:
            directories.append(line[1:].rstrip("\n"))
    _kill(groups, marks)
    for directory in directories:
        for notes in Path(directory).glob(f"{NOTES_PREFIX}*"):
            remove_left_files(notes)
        _remove(Path(directory))


def _kill(groups: Set[int], marks: Set[bytes]) -> None:
    # A process that is stopped starts no other, which would be missed.
    _signal_groups(groups, signal.SIGSTOP)
    members = _members(groups, marks)
    trackers = {pid for pid in members if _is_tracker(pid)}
    _signal(members - trackers, signal.SIGKILL)
    _signal(trackers, signal.SIGCONT)
    deadline_s = time.monotonic() + TRACKER_DEADLINE_S
    while trackers & _members(groups, marks) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    _signal_groups(groups, signal.SIGKILL)
    _signal(_members(groups, marks), signal.SIGKILL)


def remove_left_files(notes: Path) -> list[str]:
    """Remove what a trial has noted, and the notes; gives the paths that were there.

    A directory stays if something is in it that the trial did not create.
    """
    paths: list[bytes] = []
    with contextlib.suppress(OSError):
        paths = notes.read_bytes().split(b"\0")
        notes.unlink()
    removed = []
    for path in map(os.fsdecode, reversed(list(filter(None, paths)))):
        is_directory = Path(path).is_dir() and not Path(path).is_symlink()
        with contextlib.suppress(OSError):
            Path(path).rmdir() if is_directory else Path(path).unlink()
            removed.append(path)
    return removed


def _signal_groups(groups: Set[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _signal(pids: Set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _members(groups: Set[int], marks: Set[bytes]) -> set[int]:
    """The processes that are in one of the groups, or have one of the marks; on Linux."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            # After the name, which may hold anything: state, parent, group (proc_pid_stat(5)).
            state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if state == "Z":
                continue
            if int(group) in groups or marks & set((process / "environ").read_bytes().split(b"\0")):
                found.add(int(process.name))
    return found


def _is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return RESOURCE_TRACKER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _remove(directory: Path) -> None:
    """Remove a directory, those included that may not be written to any more."""
    for folder, names, _ in os.walk(directory):
        for path in (Path(folder, name) for name in names):
            # A link is removed, and what it points to is left as it is.
            if not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
