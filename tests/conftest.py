"""For all tests."""

import numpy as np  # noqa: F401 - loads the library that is limited below.
import scipy.linalg  # noqa: F401 - has another one.
from threadpoolctl import threadpool_limits

# The tests keep all cores busy: threads of small matrix products would wait for each other.
threadpool_limits(limits=1, user_api="blas")
