"""Unix time that nobody sets while a process runs."""

import time

_OFFSET_S = time.time() - time.monotonic()


def unix_s() -> float:
    """Seconds since 1970 by the wall clock as it stood at the import, whatever is done to it later.

    The time in which the machine sleeps does not count.
    """
    return _OFFSET_S + time.monotonic()
