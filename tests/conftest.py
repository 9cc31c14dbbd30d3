"""For all tests."""

import itertools
import os
import signal

import numpy as np  # noqa: F401 - loads the library that is limited below.
import pytest
import scipy.linalg  # noqa: F401 - has another one.
from threadpoolctl import threadpool_limits

# The tests keep all cores busy: threads of small matrix products would wait for each other.
threadpool_limits(limits=1, user_api="blas")

# A shell without job control lets what it starts in the background ignore Ctrl-C, and all that this
# starts: tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Each worker begins with its share of the long tests, so that none is left with one at last.

    To begin with, worker k of n is given the k-th part of the list. Within it the tests of a module
    stay together, which share what is costly to set up.
    """
    num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("long")]
    others = iter([item for item in items if not item.get_closest_marker("long")])
    ends = [len(items) * part // num_workers for part in range(num_workers + 1)]
    found = []
    for part, (begin, end) in enumerate(itertools.pairwise(ends)):
        own = long[part::num_workers]
        found += [*own, *itertools.islice(others, end - begin - len(own))]
    items[:] = found
