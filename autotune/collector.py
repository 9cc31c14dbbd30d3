"""Python's garbage collector as a setting: how it is left, frozen or slowed, here and in workers.

The collector walks through everything that is alive, and torch's modules alone are hundreds of
thousands of objects. A loader that makes many small Python objects starts it often, and may spend
half of its time there (docs/collector.md).
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable

# The values of the setting. They are stored in studies: never rename one, never change the order.
DEFAULT, FROZEN, RAISED = COLLECTORS = ("default", "frozen", "raised")
# A young collection after so many objects, and full ones practically never.
# Source: measured for this project, see docs/collector.md.
RAISED_THRESHOLDS = (50_000, 50, 1000)

WorkerInit = Callable[[int], object]


def apply_collector(name: str) -> None:
    """Set up the garbage collector of this process; "default" leaves it untouched.

    "frozen" takes all objects that are alive now out of the collector's sight for good; garbage
    that is made later is still found. "raised" lets it start less often.

    Args:
        name: One of `COLLECTORS`.

    Source: the documentation of Python's module gc: freeze, set_threshold.
    """
    if name == FROZEN:
        # Garbage that is frozen would never be freed.
        gc.collect()
    _set(name)


@dataclasses.dataclass(frozen=True, slots=True)
class CollectorInit:
    """A DataLoader's `worker_init_fn` that sets up the worker's garbage collector.

    Workers that are forked inherit the collector of the training process; those that are spawned,
    or come from a fork server, begin with Python's own. Instances can be pickled, as these need.

    Attributes:
        name: One of `COLLECTORS`.
        first: What is called before, so that what it makes is frozen, too; None for nothing.
    """

    name: str
    first: WorkerInit | None = None

    def __call__(self, worker_id: int) -> None:
        """Set the worker up."""
        if self.first is not None:
            self.first(worker_id)
        # Without a collection: in a forked worker it could end what belongs to the training
        # process, such as garbage that holds memory on a GPU.
        _set(self.name)


def _set(name: str) -> None:
    if name == FROZEN:
        gc.freeze()
    elif name == RAISED:
        gc.set_threshold(*RAISED_THRESHOLDS)
