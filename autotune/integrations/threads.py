"""Threads that a framework leaves behind and that keep trials from being forked."""

from __future__ import annotations

import sys
import threading


def end_monitors() -> None:
    """End the threads that watch tqdm's bars; the next bar starts its own.

    `from_pretrained`, `load_dataset` and `Dataset.map` show bars, and leave such a thread.
    """
    tqdm = sys.modules.get("tqdm")
    if tqdm is None:
        return
    for thread in threading.enumerate():
        if isinstance(thread, tqdm.TMonitor):
            thread.exit()
