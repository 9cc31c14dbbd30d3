"""For all tests."""

import signal

import numpy as np  # noqa: F401 - loads the library that is limited below.
import scipy.linalg  # noqa: F401 - has another one.
from threadpoolctl import threadpool_limits

# The tests keep all cores busy: threads of small matrix products would wait for each other.
threadpool_limits(limits=1, user_api="blas")

# A shell without job control lets what it starts in the background ignore Ctrl-C, and all that this
# starts: tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Long tests come first, so that no core is idle while the last of them ends."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
