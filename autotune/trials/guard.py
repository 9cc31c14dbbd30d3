"""Ends the process groups that a coordinator left behind when it was killed.

Runs as a process of its own (`python guard.py`), with nothing but the standard library. It reads
"+GROUP" and "-GROUP" lines; when the pipe ends and groups remain, it kills them. Nothing that
happens to the coordinator can keep it from doing so, `kill -9` included.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Read lines until the coordinator is gone; then kill what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
