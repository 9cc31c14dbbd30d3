"""Ctrl-C, SIGTERM and a closed terminal end a command, wherever in Python they meet it."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

AGAIN_S = 0.02
"""After how long an interrupt that was lost is raised again: outside of what swallowed it."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block at SIGINT, SIGTERM and SIGHUP; in the main thread only.

    A SIGHUP that is ignored stays so: under `nohup` a command outlives its terminal.

    Python drops whatever is raised in a finalizer, in the callback of a weak reference (every
    import runs some) or in one of the garbage collector, and prints "Exception ignored": an
    interrupt that comes there would be lost, and the command go on. It is raised again here.
    """
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGALRM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    handlers = {number: signal.signal(number, _interrupt) for number in signals}
    report = sys.unraisablehook

    def report_or_raise_again(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            report(dropped)

    sys.unraisablehook = report_or_raise_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
