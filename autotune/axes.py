"""The table of axes: everything that is to be known of a setting that is searched, in one place.

Validation, study files, the command line, the optimizer, the order of what is cheapest, the
diagnosis and the table of trials follow from it. A new axis is a field of `ThroughputConfig`, an
entry here, and a test.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Mapping

from autotune import allocator, collector

AxisValue = int | bool | str


class Kind(enum.Enum):
    """What the values of an axis are."""

    COUNT = "a whole number"
    FLAG = "true or false"
    WORD = "a word"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One setting that is searched.

    Attributes:
        name: The setting's name, as in `ThroughputConfig`.
        kind: What its values are.
        length: How far apart values may be and still be alike to the optimizer: doublings of a
            count; for a word, the distance of any two, in units of which 1 is far.
            Source: chosen on the truth tables rows and decoded (benchmarks/search.py).
        label: What people call it, where its name does not say it.
        words: Its values where these are words, in the order in which they are listed.
        minimum: Of a count.
        is_optional: Whether a configuration may leave it out (None).
        needs_workers: Whether it means nothing without loader workers.
        is_widened: Whether values beyond those that were asked for are tried where the best lies
            at their upper end.
        is_live: Whether it can be changed in a running loop, between two epochs.
        cost_rank: Its place in the order of what is cheapest, the most expensive first; None where
            its values cost the same.
        default_origin: Where its value comes from if the script names none.
        largest: Of a count, more than anybody tries: bounds of the axis in stored studies.
    """

    name: str
    kind: Kind
    length: float
    label: str = ""
    words: tuple[str, ...] = ()
    minimum: int = 1
    is_optional: bool = False
    needs_workers: bool = False
    is_widened: bool = False
    is_live: bool = False
    cost_rank: int | None = None
    default_origin: str = "the script's default"
    largest: int = 2**12

    def place(self, value: AxisValue | None) -> int:
        """Where a value stands in the order of the axis; None is below all others."""
        if value is None:
            return 0
        return self.words.index(str(value)) if self.words else int(value)


_TABLE = (
    Axis(
        name="batch_size",
        kind=Kind.COUNT,
        length=3.0,
        is_widened=True,
        cost_rank=4,
        largest=2**24,
    ),
    Axis(
        name="num_workers",
        kind=Kind.COUNT,
        length=1.0,
        minimum=0,
        needs_workers=True,
        is_widened=True,
        is_live=True,
        cost_rank=0,
    ),
    Axis(
        name="prefetch_factor",
        kind=Kind.COUNT,
        length=4.0,
        is_optional=True,
        needs_workers=True,
        is_widened=True,
        is_live=True,
        cost_rank=2,
        default_origin="the loader's default",
    ),
    Axis(
        name="num_threads",
        kind=Kind.COUNT,
        length=0.7,
        is_optional=True,
        is_live=True,
        cost_rank=1,
        default_origin="torch's default",
    ),
    Axis(
        name="num_interop_threads",
        kind=Kind.COUNT,
        length=0.7,
        is_optional=True,
        default_origin="torch's default",
    ),
    Axis(
        name="pin_memory",
        kind=Kind.FLAG,
        length=1.0,
        is_live=True,
        default_origin="torch's default",
    ),
    Axis(
        name="gc",
        kind=Kind.WORD,
        length=1.5,
        label="garbage collector",
        words=collector.COLLECTORS,
        # What the collector is for is worth having where nothing else brings it.
        cost_rank=3,
        default_origin="Python's",
    ),
    Axis(
        name="malloc",
        kind=Kind.WORD,
        length=1.5,
        label="memory allocator",
        words=allocator.ALLOCATORS,
        default_origin="the C library's",
    ),
    Axis(
        name="ranks_per_node",
        kind=Kind.COUNT,
        length=1.0,
        label="ranks per machine",
        default_origin="the command's",
    ),
)
AXES: Mapping[str, Axis] = types.MappingProxyType({axis.name: axis for axis in _TABLE})
# The axes that say what is cheapest, the most expensive first.
BY_COST = tuple(
    sorted(
        (axis for axis in _TABLE if axis.cost_rank is not None),
        key=lambda axis: axis.cost_rank or 0,
    )
)
