"""Which threads are inside a loader just now: what they do is no part of a step."""

from __future__ import annotations

import threading


class LoadingThreads:
    """The threads that are inside a loader, each within a `with` block over this."""

    def __init__(self) -> None:
        # Loaders may ask each other for batches. The system gives a number again much later than
        # Python gives its own, which the next thread to start may have.
        self._depths: dict[int, int] = {}

    def __enter__(self) -> None:
        thread = threading.get_native_id()
        self._depths[thread] = self._depths.get(thread, 0) + 1

    def __exit__(self, *_: object) -> None:
        thread = threading.get_native_id()
        self._depths[thread] -= 1
        if not self._depths[thread]:
            del self._depths[thread]

    def is_step(self, trainer: int | None) -> bool:
        """Whether what this thread does belongs to a step rather than to a loader.

        While the thread that trains is inside a loader, all threads are taken to load: a loader may
        have some of its own.

        Args:
            trainer: The system's number of the thread that trains, where it is not the one that
                asks for batches; None where it is, or is not known.
        """
        inside = set(self._depths)
        if threading.get_native_id() in inside:
            return False
        return not inside or (trainer is not None and trainer not in inside)
