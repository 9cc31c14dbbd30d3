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

from autotune import allocator, collector, torch_flags, worker_start

AxisValue = int | bool | str
# What the project needs, see pyproject.toml.
_OLDEST_TORCH = (2, 2)


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
        without_workers: Its value where there are none, if it needs them.
        needs_torch: The first version of torch that knows it; None where the script may have none.
        needs_device: Whether it means nothing without a GPU.
        is_extended: Whether it is searched with `--axes extended`, and else only if it is named.
        caution: What another value changes besides the speed, for people; empty for nothing.
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
    without_workers: AxisValue | None = None
    needs_torch: tuple[int, int] | None = None
    needs_device: bool = False
    is_extended: bool = False
    caution: str = ""
    is_widened: bool = False
    is_live: bool = False
    cost_rank: int | None = None
    default_origin: str = "the script's default"
    largest: int = 2**12

    @property
    def splits_costs(self) -> bool:
        """Whether its values are words, with each of which step and loading cost something else."""
        return self.kind is Kind.WORD and not self.needs_workers

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
        needs_device=True,
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
    Axis(
        name="in_order",
        kind=Kind.FLAG,
        length=1.0,
        label="batches in order",
        needs_workers=True,
        without_workers=True,
        needs_torch=(2, 6),
        is_extended=True,
        is_live=True,
        default_origin="torch's default",
        caution="batches come as workers have them ready, so that their order differs from run to "
        "run",
    ),
    Axis(
        name="cudnn_benchmark",
        kind=Kind.FLAG,
        length=1.0,
        label="cuDNN's benchmark",
        needs_torch=_OLDEST_TORCH,
        needs_device=True,
        is_extended=True,
        default_origin="torch's default",
        caution="cuDNN chooses its algorithms by their speed, so that the last digits of what it "
        "computes may differ from run to run",
    ),
    Axis(
        name="multiprocessing_context",
        kind=Kind.WORD,
        length=1.5,
        label="start of the workers",
        words=worker_start.START_METHODS,
        needs_workers=True,
        without_workers=worker_start.DEFAULT,
        needs_torch=_OLDEST_TORCH,
        is_extended=True,
        default_origin="Python's",
    ),
    # Not extended: it changes what is computed, which nobody is to get without asking for it.
    Axis(
        name="matmul_precision",
        kind=Kind.WORD,
        length=1.5,
        label="precision of float32 products",
        words=torch_flags.PRECISIONS,
        needs_torch=_OLDEST_TORCH,
        default_origin="torch's default",
        caution="products of float32 matrices have another precision: compare what is learned",
    ),
)
AXES: Mapping[str, Axis] = types.MappingProxyType({axis.name: axis for axis in _TABLE})
# Settings that mean nothing without workers, with the value that they have then.
WITHOUT_WORKERS: Mapping[str, AxisValue | None] = types.MappingProxyType(
    {
        axis.name: axis.without_workers
        for axis in _TABLE
        if axis.needs_workers and axis.name != "num_workers"
    }
)
# The axes that say what is cheapest, the most expensive first.
BY_COST = tuple(
    sorted(
        (axis for axis in _TABLE if axis.cost_rank is not None),
        key=lambda axis: axis.cost_rank or 0,
    )
)
