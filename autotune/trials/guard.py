"""Ends what a coordinator left behind when it was killed: process groups and its directory.

Runs as a process of its own (`python guard.py`), with nothing but the standard library. It reads
lines: "+GROUP" and "-GROUP" for groups that live, "@NAME=VALUE" for what the environment of all
that was started holds, "=DIRECTORY" for what is to go with the coordinator. When the pipe ends, it
kills the groups that remain, and daemons that left them, and removes the directory. Nothing that
happens to the coordinator can keep it from doing so, `kill -9` included.
"""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path


def main() -> None:
    """Read lines until the coordinator is gone; then kill what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    directories: list[str] = []
    marks: list[bytes] = []
    for line in sys.stdin:
        if line[0] == "+":
            groups.add(int(line[1:]))
        elif line[0] == "-":
            groups.discard(int(line[1:]))
        elif line[0] == "@":
            marks.append(line[1:].rstrip("\n").encode())
        else:
            directories.append(line[1:].rstrip("\n"))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if set(marks) & set(environment.read_bytes().split(b"\0")):
                os.kill(int(environment.parent.name), signal.SIGKILL)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
