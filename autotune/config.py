"""The settings that are tuned: their rules, and what they mean to a DataLoader and to a process."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from autotune import allocator, torch_flags, worker_start
from autotune.axes import AXES, WITHOUT_WORKERS, Kind
from autotune.collector import DEFAULT, CollectorInit, WorkerInit, apply_collector
from autotune.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

# torch.utils.data.DataLoader's own default where there are workers.
DEFAULT_PREFETCH_FACTOR = 2
# What native libraries read when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputConfig:
    """The settings that decide how fast a training loop runs, and nothing about what it learns.

    Attributes:
        batch_size: Samples per micro-step, that is per batch that the loader delivers.
        gradient_accumulation_steps: Micro-steps per optimizer step.
        num_workers: Loader processes; 0 loads in the training process.
        prefetch_factor: Batches that each worker prepares ahead; None without workers.
        persistent_workers: Whether workers outlive an epoch; None means wherever there are any.
        pin_memory: Whether batches are copied to page-locked memory (for GPUs).
        num_threads: Threads within an operation (intra-op); None leaves torch's default.
        num_interop_threads: Threads across operations; None leaves torch's default.
        gc: Python's garbage collector, in the training process and in the loader's workers:
            "default" leaves it as it is, "frozen" takes what is alive when training begins out of
            its sight, "raised" lets it start less often (see docs/collector.md).
        malloc: The C library's memory allocator: "default" leaves it as it is, "kept" has freed
            memory stay with the process (see docs/allocator.md).
        in_order: Whether batches come in the sampler's order; False lets one that a worker has
            ready overtake another's that is late. Without workers they always do.
        multiprocessing_context: How workers are started: "fork", "forkserver" or "spawn";
            "default" leaves it as the script or Python has it.
        cudnn_benchmark: Whether cuDNN tries its algorithms and keeps the fastest; False leaves it
            as the script has it.
        matmul_precision: Of products of float32 matrices: "highest", "high" or "medium", which
            changes what is computed; "default" leaves it as the script has it.
        num_ranks: Processes that train together, on all machines. `load_config` sets it.
        ranks_per_node: Those of them on one machine; `load_config` sets it, too.

    Raises:
        ConfigError: A value is outside its range, or two contradict each other.
    """

    # Read by pydantic where a file is validated; unknown keys are errors.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    batch_size: int
    gradient_accumulation_steps: int = 1
    num_workers: int = 0
    prefetch_factor: int | None = None
    persistent_workers: bool | None = None
    pin_memory: bool = False
    num_threads: int | None = None
    num_interop_threads: int | None = None
    gc: str = DEFAULT
    malloc: str = allocator.DEFAULT
    in_order: bool = True
    multiprocessing_context: str = worker_start.DEFAULT
    cudnn_benchmark: bool = False
    matmul_precision: str = torch_flags.DEFAULT
    num_ranks: int = 1
    ranks_per_node: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            _check_axis_value(name, getattr(self, name))
        _check_integer("num_ranks", self.num_ranks, 1)
        _check_integer("gradient_accumulation_steps", self.gradient_accumulation_steps, 1)
        _check_flag("persistent_workers", self.persistent_workers, optional=True)
        if self.num_workers == 0:
            for name, value in WITHOUT_WORKERS.items():
                _check_without_workers(name, getattr(self, name), value)
            if self.persistent_workers:
                raise ConfigError("persistent_workers must be false when num_workers is 0")
        elif self.prefetch_factor is None:
            object.__setattr__(self, "prefetch_factor", DEFAULT_PREFETCH_FACTOR)
        if self.persistent_workers is None:
            object.__setattr__(self, "persistent_workers", self.num_workers > 0)

    @property
    def effective_batch_size(self) -> int:
        """Samples per optimizer step, of all ranks together."""
        return self.batch_size * self.gradient_accumulation_steps * self.num_ranks

    @property
    def num_prefetched(self) -> int:
        """Batches that the loader holds ready when the step is slower than the loader."""
        return self.num_workers * (self.prefetch_factor or 0)

    @property
    def summary(self) -> str:
        """The settings on one line, for people."""
        steps = self.gradient_accumulation_steps
        accumulation = f" (accumulation {steps})" if steps > 1 else ""
        parts = [f"ranks {self.num_ranks}"] if self.num_ranks > 1 else []
        parts.append(f"batch {self.batch_size}{accumulation}")
        parts.append(f"workers {self.num_workers}{self._workers_summary}")
        if self.num_threads is not None:
            parts.append(f"threads {self.num_threads}")
        if self.num_interop_threads is not None:
            parts.append(f"inter-op threads {self.num_interop_threads}")
        if self.pin_memory:
            parts.append("pinned memory")
        if self.gc != DEFAULT:
            parts.append(f"gc {self.gc}")
        if self.malloc != allocator.DEFAULT:
            parts.append(f"malloc {self.malloc}")
        if self.cudnn_benchmark:
            parts.append("cuDNN benchmark")
        if self.matmul_precision != torch_flags.DEFAULT:
            parts.append(f"matmul {self.matmul_precision}")
        return ", ".join(parts)

    @property
    def _workers_summary(self) -> str:
        if not self.num_workers:
            return ""
        parts = [f"prefetch {self.prefetch_factor}"]
        if self.multiprocessing_context != worker_start.DEFAULT:
            parts.append(self.multiprocessing_context)
        if not self.in_order:
            parts.append("any order")
        return f" ({', '.join(parts)})"

    def with_effective_batch_size(self, effective_batch_size: int) -> ThroughputConfig:
        """The same settings with accumulation that makes up `effective_batch_size` samples.

        Raises:
            ConfigError: The batch size does not divide it.
        """
        _check_integer("effective_batch_size", effective_batch_size, 1)
        steps, rest = divmod(effective_batch_size, self.batch_size * self.num_ranks)
        if rest or not steps:
            raise ConfigError(
                f"batch_size must divide effective_batch_size ({effective_batch_size}), and "
                f"{self.batch_size} does not: choose one of its divisors"
                if self.num_ranks == 1
                else f"batch_size x ranks must divide effective_batch_size "
                f"({effective_batch_size}), and {self.batch_size} x {self.num_ranks} does not: "
                "choose another of the two"
            )
        return dataclasses.replace(self, gradient_accumulation_steps=steps)

    def without_workers(self) -> ThroughputConfig:
        """The same settings without loader workers, and without what needs some."""
        settings: dict[str, Any] = {"num_workers": 0, "persistent_workers": None, **WITHOUT_WORKERS}
        return dataclasses.replace(self, **settings)

    def dataloader_kwargs(self, worker_init_fn: WorkerInit | None = None) -> dict[str, Any]:
        """Keyword arguments for `torch.utils.data.DataLoader`, legal in every combination.

        Where there are workers and `gc` is not "default", a `worker_init_fn` is among them, which
        sets up the garbage collector of each worker. So give a function of your own here, and not
        to the DataLoader as well.

        Args:
            worker_init_fn: A function of your own that each worker calls with its number first.

        Raises:
            ConfigError: The DataLoader of this torch does not know `in_order`, which is False.
        """
        kwargs: dict[str, Any] = {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
        }
        # DataLoader refuses these two where there are no workers.
        if self.num_workers:
            kwargs["prefetch_factor"] = self.prefetch_factor
            kwargs["persistent_workers"] = self.persistent_workers
            kwargs |= self.worker_options()
        if self.num_workers and self.gc != DEFAULT:
            kwargs["worker_init_fn"] = CollectorInit(self.gc, worker_init_fn)
        elif worker_init_fn is not None:
            kwargs["worker_init_fn"] = worker_init_fn
        return kwargs

    def worker_options(self) -> dict[str, Any]:
        """How a DataLoader is to start and read its workers, as far as that is not torch's default.

        Raises:
            ConfigError: See `dataloader_kwargs`.
        """
        options: dict[str, Any] = {}
        if not self.in_order:
            _check_torch_knows_in_order()
            options["in_order"] = False
        if self.multiprocessing_context != worker_start.DEFAULT:
            options["multiprocessing_context"] = self.multiprocessing_context
        return options

    def dataloader(self, dataset: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:  # noqa: ANN401
        """A DataLoader over `dataset` with these settings.

        Args:
            dataset: A map-style or iterable dataset.
            **kwargs: Whatever else the DataLoader takes (`shuffle`, `collate_fn`, `sampler`,
                `worker_init_fn`, …). A `batch_sampler`, or `batch_size=None` for a dataset that
                gives batches itself, replaces the batch size of these settings.

        Raises:
            ConfigError: An argument is one that these settings decide; or see `dataloader_kwargs`.
        """
        from torch.utils.data import DataLoader

        tuned = self.dataloader_kwargs(kwargs.pop("worker_init_fn", None))
        if kwargs.get("batch_sampler") is not None or kwargs.get("batch_size", 0) is None:
            del tuned["batch_size"]
        taken = sorted(set(tuned) & set(kwargs))
        if taken:
            raise ConfigError(
                f"{', '.join(taken)} is decided by the configuration: leave it out of dataloader()"
            )
        return DataLoader(dataset, **tuned, **kwargs)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that say the same to a process before it starts."""
        found = dict(allocator.allocator_environment(self.malloc))
        if self.num_threads is not None:
            found |= dict.fromkeys(THREAD_VARIABLES, str(self.num_threads))
        return found

    def apply_to_process(self) -> None:
        """Set up this process: threads, memory allocator, switches of torch and garbage collector.

        What is None or "default" stays as it is, as does cuDNN's benchmark where it is False.
        What is imported later or started from here finds the number of threads in the environment.
        `load_config` calls this, so that a measured trial and the training that follows it run
        alike.

        Raises:
            ConfigError: The inter-op count came too late: torch accepts it only before its first
                parallel work.
        """
        if self.num_threads is not None:
            from threadpoolctl import threadpool_limits

            threadpool_limits(limits=self.num_threads)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(self.num_threads)
        # For what is imported later, or started from here.
        os.environ |= self.environment
        allocator.apply_allocator(self.malloc)
        if self.num_interop_threads is not None:
            self._apply_interop_threads(self.num_interop_threads)
        torch_flags.apply_torch_flags(
            matmul_precision=self.matmul_precision, cudnn_benchmark=self.cudnn_benchmark
        )
        # Last, so that what was imported above is frozen, too.
        apply_collector(self.gc)

    def _apply_interop_threads(self, number: int) -> None:
        import torch

        if torch.get_num_interop_threads() != number:
            try:
                torch.set_num_interop_threads(number)
            except RuntimeError as error:
                raise ConfigError(
                    f"num_interop_threads = {number} must be set before torch's first parallel "
                    f"work: call autotune.load_config earlier ({error})"
                ) from error

    def to_dict(self) -> dict[str, int | bool | str | None]:
        """The settings as plain values, for files and messages."""
        return dataclasses.asdict(self)


# What 32 bits hold; no loader or thread pool takes more.
_LARGEST = 2**31 - 1


def _check_axis_value(name: str, value: object) -> None:
    axis = AXES[name]
    if axis.kind is Kind.COUNT:
        _check_integer(name, value, axis.minimum, optional=axis.is_optional)
    elif axis.kind is Kind.FLAG:
        _check_flag(name, value, optional=axis.is_optional)
    elif value not in axis.words:
        raise ConfigError(f"{name} must be one of {', '.join(axis.words)}, not {value!r}")


def _check_without_workers(name: str, value: object, expected: object) -> None:
    if value != expected:
        raise ConfigError(
            f"{name} must be {json.dumps(expected)} when num_workers is 0, not "
            f"{json.dumps(value)}: it has no effect without workers"
        )


def _check_torch_knows_in_order() -> None:
    import torch

    if "in_order" not in inspect.signature(torch.utils.data.DataLoader.__init__).parameters:
        raise ConfigError(
            f"in_order must be true with torch {torch.__version__}, not false: only the DataLoader "
            "of torch 2.6 and later knows it"
        )


def _check_flag(name: str, value: object, *, optional: bool) -> None:
    if not isinstance(value, bool) and not (optional and value is None):
        raise ConfigError(f"{name} must be true or false, not {value!r}")


def _check_integer(name: str, value: object, minimum: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, int) and value > _LARGEST:
        raise ConfigError(f"{name} must be at most {_LARGEST:,}, not {value}")
    # bool is an int to Python, and never a count to a person.
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        alternative = " or null" if optional else ""
        raise ConfigError(
            f"{name} must be a whole number of at least {minimum}{alternative}, not {value!r}"
        )
