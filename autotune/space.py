"""The space that is searched: an axis for each setting, and the legal combinations of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autotune import allocator, worker_start
from autotune.axes import AXES, BY_COST, WITHOUT_WORKERS, AxisValue
from autotune.collector import DEFAULT, FROZEN
from autotune.config import DEFAULT_PREFETCH_FACTOR, ThroughputConfig
from autotune.errors import BadInputError, ConfigError

# Of more divisors than these, the default batch axis takes so many, spread evenly.
_MAX_BATCH_SIZES = 8
# Without a name for the axis, no more workers are tried at first.
_MOST_WORKERS = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The values of each axis, ascending (words: as the axis lists them), without repeats.

    Attributes:
        axes: For some of `axes.AXES`, by name, the values. An axis that is missing stays as it is
            in the baseline (for `prefetch_factor`: at the DataLoader's default).
        effective_batch_size: Samples per optimizer step that every configuration must keep.
        fewest_ranks: Processes that train together, in those configurations that have the fewest.

    Raises:
        BadInputError: An axis is unknown, empty, or holds a value that no configuration can have.
    """

    axes: Mapping[str, tuple[AxisValue, ...]]
    effective_batch_size: int | None = None
    fewest_ranks: int = 1

    def __post_init__(self) -> None:
        for name, values in self.axes.items():
            check_axis(name, values)
        self._check_divisors()
        ordered = {
            name: tuple(sorted(set(self.axes[name]), key=axis.place))
            for name, axis in AXES.items()
            if name in self.axes
        }
        object.__setattr__(self, "axes", ordered)

    def configurations(self, baseline: ThroughputConfig) -> tuple[ThroughputConfig, ...]:
        """Every legal combination, once. Axes that the space lacks are the baseline's.

        Where there are several ranks, batch sizes of which these have too many are left out, and
        more threads of all together than one rank may have by itself.
        """
        of_workers: dict[str, tuple[AxisValue | None, ...]] = {"prefetch_factor": (None,)}
        others: dict[str, tuple[AxisValue | None, ...]] = {}
        for name, values in self.axes.items():
            (of_workers if name in WITHOUT_WORKERS else others)[name] = values
        found: dict[ThroughputConfig, None] = {}
        for settings in _combinations(others):
            if self._fits(baseline, **settings):
                for more in _combinations(of_workers):
                    found[self.changed(baseline, **settings, **more)] = None
        return tuple(found)

    def changed(self, config: ThroughputConfig, **settings: Any) -> ThroughputConfig:  # noqa: ANN401
        """A configuration with other values of some settings, and whatever follows from them.

        Without workers, settings that need some are as they are then; the effective batch size is
        kept, and the threads of all ranks on a machine.
        """
        num_workers = settings.get("num_workers", config.num_workers)
        dependent: dict[str, Any] = {"persistent_workers": None}
        if not num_workers:
            dependent |= WITHOUT_WORKERS
        per_node = settings.get("ranks_per_node", config.ranks_per_node)
        if per_node != config.ranks_per_node:
            # On each machine, and all of them together have as many threads as before.
            dependent["num_ranks"] = config.num_ranks * per_node // config.ranks_per_node
            if config.num_threads is not None and "num_threads" not in settings:
                threads = config.num_threads * config.ranks_per_node // per_node
                dependent["num_threads"] = max(1, threads)
        found = dataclasses.replace(config, **settings | dependent)
        if self.effective_batch_size is None:
            return found
        return found.with_effective_batch_size(self.effective_batch_size)

    def _fits(
        self,
        baseline: ThroughputConfig,
        *,
        batch_size: int | None = None,
        ranks_per_node: int | None = None,
        num_threads: int | None = None,
        **_: object,
    ) -> bool:
        """Whether the ranks have room on a machine, and can make up the effective batch."""
        per_node = ranks_per_node or baseline.ranks_per_node
        fewest = min(map(int, self.axes.get("ranks_per_node", (per_node,))))
        most = max(map(int, self.axes.get("num_threads", (1,)))) * fewest
        if num_threads is not None and per_node > fewest and num_threads * per_node > most:
            return False
        num_ranks = baseline.num_ranks * per_node // baseline.ranks_per_node
        size = batch_size or baseline.batch_size
        return self.effective_batch_size is None or not (
            self.effective_batch_size % (size * num_ranks)
        )

    def _check_divisors(self) -> None:
        effective = self.effective_batch_size
        if effective is None:
            return
        share = effective // self.fewest_ranks
        wrong = [size for size in self.axes.get("batch_size", ()) if share % int(size)]
        if wrong:
            whose = (
                f"the effective batch size {effective} that the script asks for"
                if self.fewest_ranks == 1
                else f"{share}, which is each of {self.fewest_ranks} ranks' share of the effective "
                f"batch size {effective}"
            )
            raise BadInputError(
                f"axis batch_size: must hold divisors of {whose}, and "
                f"{', '.join(map(str, wrong))} is none: remove it"
            )


def value_of(config: ThroughputConfig, setting: str) -> AxisValue | None:
    """A setting's value; prefetching that is left to the loader has the loader's depth."""
    value: AxisValue | None = getattr(config, setting)
    if setting == "prefetch_factor" and value is None:
        return DEFAULT_PREFETCH_FACTOR
    return value


def settings_of(config: ThroughputConfig) -> tuple[AxisValue | None, ...]:
    """The values of all axes."""
    return tuple(value_of(config, name) for name in AXES)


def preference(config: ThroughputConfig, baseline: ThroughputConfig) -> tuple[int, ...]:
    """Orders configurations that are equally fast, the one to choose first.

    A setting that brings nothing stays as it is: fewer settings changed from the baseline's come
    first. Then counts what they take of the machine, the cheapest first.
    """
    # Workers are enough to have something prefetched; another depth is one more change.
    num_changed = sum(
        value_of(config, name) != value_of(baseline, name)
        for name in AXES
        if config.num_workers or name not in WITHOUT_WORKERS
    )
    return (num_changed, *(axis.place(getattr(config, axis.name)) for axis in BY_COST))


def check_axis(name: str, values: Iterable[object]) -> None:
    """Check one axis by itself.

    Raises:
        BadInputError: It is unknown, empty, or holds a value that its setting cannot have.
    """
    if name not in AXES:
        raise BadInputError(f"axis {name}: unknown; known are {', '.join(AXES)}")
    values = tuple(values)
    if not values:
        raise BadInputError(f"axis {name}: needs at least one value")
    for value in values:
        settings = {"batch_size": 1, "num_workers": int(name in WITHOUT_WORKERS), name: value}
        try:
            if value is None:
                raise ConfigError(f"{name} must have a value, not null")
            ThroughputConfig(**settings)  # type: ignore[arg-type]
        except ConfigError as error:
            raise BadInputError(f"axis {name}: {error}") from error


def default_axes(
    *,
    usable_cores: int,
    fewest_ranks: int = 1,
    baseline: ThroughputConfig,
    effective_batch_size: int | None,
) -> dict[str, tuple[AxisValue, ...]]:
    """The axes to search where the user names none.

    Batch sizes are the divisors of the effective batch, or half to sixteen times the baseline's.
    All counts are those of one rank: `fewest_ranks` or more on a machine share its cores.
    Workers go to twice the cores (loading may wait rather than compute), on machines with many to
    32 at first: where the most are best, more are tried. Threads go to the cores; a baseline
    without a number of threads is a script without torch, and has none to tune. What the baseline's
    measurement shows decides of the garbage collector, the memory allocator and page-locked memory,
    and leaves out threads that a GPU makes idle: see `plan.with_fitting_axes`.
    """
    usable_cores = max(1, usable_cores // fewest_ranks)
    if effective_batch_size is None:
        size = baseline.batch_size
        batch_sizes = {max(1, size // 2), *(size * 2**power for power in range(5))}
    else:
        share = effective_batch_size // baseline.num_ranks
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        batch_sizes = _thinned(divisors) | {baseline.batch_size}
    powers = [2**power for power in range(8)]
    workers = [0, *(n for n in powers if n <= min(2 * usable_cores, _MOST_WORKERS))]
    threads = [n for n in range(1, usable_cores + 1) if usable_cores <= 4 or n in powers]
    axes: dict[str, tuple[AxisValue, ...]] = {
        "batch_size": tuple(sorted(batch_sizes)),
        "num_workers": tuple(workers),
        "prefetch_factor": (2, 4),
    }
    if baseline.num_threads is not None:
        axes["num_threads"] = tuple(sorted({*threads, usable_cores}))
    # Not "raised": it is about as fast (docs/collector.md), and lets garbage grow for much longer.
    axes["gc"] = tuple(dict.fromkeys((DEFAULT, FROZEN, baseline.gc)))
    if allocator.is_tunable() and baseline.malloc == allocator.DEFAULT:
        axes["malloc"] = allocator.ALLOCATORS
    return axes


def extended_axes(baseline: ThroughputConfig) -> dict[str, tuple[AxisValue, ...]]:
    """The axes that are searched as well with `--axes extended` (docs/your_loop.md)."""
    method = baseline.multiprocessing_context
    return {
        "in_order": (True, False),
        "cudnn_benchmark": (False, True),
        "multiprocessing_context": tuple(dict.fromkeys((method, *worker_start.worth_trying()))),
    }


def _combinations(
    axes: Mapping[str, tuple[AxisValue | None, ...]],
) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _thinned(divisors: list[int]) -> set[int]:
    """At most `_MAX_BATCH_SIZES` divisors, spread evenly in their order, the largest kept."""
    count = len(divisors)
    if count <= _MAX_BATCH_SIZES:
        return set(divisors)
    last = _MAX_BATCH_SIZES - 1
    return {divisors[round(index * (count - 1) / last)] for index in range(_MAX_BATCH_SIZES)}
