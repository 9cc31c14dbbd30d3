"""Ctrl-C and SIGTERM as a wish to stop, granted at the end of an optimizer step."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def outlive_signals(worker_id: int) -> None:
    """Make a loader worker ignore SIGINT and SIGTERM; a DataLoader's `worker_init_fn`.

    Both often go to the whole process group (Ctrl-C on a terminal, a service manager), and the
    training process needs its workers to finish the optimizer step. It ends them itself, by an
    event; and they end by themselves when it is gone.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interruption:
    """A context in which the first SIGINT or SIGTERM is noted; a second one acts at once."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self.received: signal.Signals | None = None
        self._pid = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells count; 0 without a signal."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> Interruption:
        """Take over the signals."""
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A loader worker that has only just been forked: see `outlive_signals`.
            return
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
