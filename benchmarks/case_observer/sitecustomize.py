"""Records what a training does, for `benchmarks/cases.py`.

Python imports a module of this name when it starts. Where CASES_LOG names a directory, the loaders
given to `autotune.steps` are observed: each process writes the passes through them, with samples
and optimizer steps, to a file of its own as JSON lines. The training script need not know.

CASES_SIZE says how samples are counted where no sampler hands out indices: `len` for the length of
a batch, or the dimension of its first tensor.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

WINDOW_S = 0.1
# The attribute itself: some loaders have a property of that name over it.
_CLASS: Any = vars(object)["__class__"]


class Log:
    """JSON lines of this process."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._file: Any = None
        self._pid = 0

    def write(self, event: str, **values: object) -> None:
        """Add a line; a forked process begins a file of its own."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._file = (self._directory / f"{self._pid}.jsonl").open("a", buffering=1)
        self._file.write(json.dumps({"event": event, "at_s": time.monotonic(), **values}) + "\n")


class OptimizerSteps:
    """Optimizer steps of this process, by optimizer."""

    def __init__(self) -> None:
        self.counts: collections.Counter[int] = collections.Counter()
        self._watched = False

    def watch(self) -> None:
        """Count from now on, in all optimizers of torch."""
        if not self._watched and "torch" in sys.modules:
            from torch.optim.optimizer import register_optimizer_step_post_hook

            register_optimizer_step_post_hook(self._count)
            self._watched = True

    def since(self, before: Mapping[int, int]) -> int:
        """Steps of the optimizer that has taken the most since then."""
        return max((n - before.get(key, 0) for key, n in self.counts.items()), default=0)

    def _count(self, optimizer: object, *_: object) -> None:
        self.counts[id(optimizer)] += 1


class IndexSampler:
    """An index sampler that notes how many samples each batch will hold."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401
        self.inner = inner
        self.sizes: collections.deque[int] = collections.deque()

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        self.sizes.clear()
        for indices in self.inner:
            if isinstance(indices, (list, tuple)) and None not in indices:
                self.sizes.append(len(indices))
            yield indices


class Pass:
    """One pass through a loader."""

    def __init__(self, observer: Observer, loader: Any, iterator: Iterator[Any]) -> None:  # noqa: ANN401
        self._observer, self._iterator = observer, iterator
        self._sampler = vars(loader).get("_observed_sampler")
        self._number = observer.num_passes
        self._ended = False
        observer.num_passes += 1
        number = vars(loader).get("_observed_number", 0)
        if (left := observer.latest.get(number)) is not None:
            left.leave()
        observer.latest[number] = self
        self._before = dict(observer.steps.counts)
        self._num_batches = self._num_samples = self._pending = 0
        self._written_s = time.monotonic()
        observer.log.write(
            "pass",
            number=self._number,
            loader=number,
            drop_last=drops_last(loader),
            batch_size=batch_size(loader),
            num_workers=getattr(loader, "num_workers", None),
        )

    def __iter__(self) -> Pass:
        return self

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._iterator, name)

    def __next__(self) -> Any:  # noqa: ANN401
        self._num_samples, self._pending = self._num_samples + self._pending, 0
        if time.monotonic() - self._written_s > WINDOW_S:
            self._write("window")
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._ended = True
            self._write("end")
            raise
        self._num_batches += 1
        self._pending = self._size_of(batch)
        return batch

    def leave(self) -> None:
        """Record what was trained since, if the loop left it before its end."""
        if not self._ended:
            self._ended = True
            self._num_samples, self._pending = self._num_samples + self._pending, 0
            self._write("window")

    def _size_of(self, batch: object) -> int:
        if self._sampler is not None and self._sampler.sizes:
            return int(self._sampler.sizes.popleft())
        return size_of(batch, self._observer.size) or 0

    def _write(self, event: str) -> None:
        self._written_s = time.monotonic()
        self._observer.log.write(
            event,
            number=self._number,
            batches=self._num_batches,
            samples=self._num_samples,
            updates=self._observer.steps.since(self._before),
        )


class AnyIterable:
    """Stands for an iterable whose class cannot be replaced."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401
        self._inner = inner

    def __iter__(self) -> Iterator[Any]:
        return iter(self._inner)

    def __next__(self) -> Any:  # noqa: ANN401
        return next(self._inner)

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._inner, name)


class Observer:
    """Observes the loaders that are given to `autotune.steps`."""

    def __init__(self, log: Log, size: str) -> None:
        self.log, self.size = log, size
        self.steps = OptimizerSteps()
        self.num_passes = 0
        self.latest: dict[int, Pass] = {}
        self._numbers: dict[object, int] = {}

    def observe(self, loader: Any, where: object) -> Any:  # noqa: ANN401
        """The loader itself wherever possible, with passes that are recorded.

        Loaders that are made anew for each epoch count as one: they are given to `steps` at the
        same place of the script, and have the same dataset.
        """
        self.steps.watch()
        if getattr(type(loader), "_observed", False):
            return loader
        try:
            _CLASS.__set__(loader, self._observed(type(loader)))
        except TypeError:
            loader = AnyIterable(loader)
            _CLASS.__set__(loader, self._observed(AnyIterable))
        key = (where, id(getattr(loader, "dataset", None)))
        vars(loader)["_observed_number"] = self._numbers.setdefault(key, len(self._numbers))
        return loader

    def _observed(self, cls: type) -> type:
        observer = self

        def begin(self: Any) -> Pass:  # noqa: ANN401
            return Pass(observer, self, super(observed, self).__iter__())

        def index_sampler(self: Any) -> IndexSampler:  # noqa: ANN401
            inner = super(observed, self)._index_sampler
            found = vars(self).get("_observed_sampler")
            if found is None or found.inner is not inner:
                found = vars(self)["_observed_sampler"] = IndexSampler(inner)
            return found  # type: ignore[no-any-return]

        methods: dict[str, object] = {"__iter__": begin, "_observed": True}
        if hasattr(cls, "_index_sampler"):
            methods["_index_sampler"] = property(index_sampler)
        observed = type(cls.__name__, (cls,), methods)
        return observed


def batch_size(loader: object) -> int | None:
    """Samples in a full batch; a wrapper may have a figure of its own that is not used."""
    found = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return found if found is not None else getattr(loader, "batch_size", None)


def drops_last(loader: object) -> bool:
    """Whether a last, partial batch is left out; a wrapper may know its batch sampler only."""
    return any(
        bool(getattr(part, "drop_last", False))
        for part in (loader, getattr(loader, "batch_sampler", None))
    )


def size_of(part: object, size: str) -> int | None:
    """Samples in a batch, by the first tensor found in it; None where there is none."""
    if size == "len":
        return len(part)  # type: ignore[arg-type]
    shape = getattr(part, "shape", None)
    if shape is not None:
        return int(shape[int(size)]) if len(shape) > int(size) else None
    parts = part.values() if isinstance(part, Mapping) else part
    if not isinstance(part, (list, tuple, Mapping)):
        return None
    sizes = (size_of(inner, size) for inner in parts)  # type: ignore[attr-defined]
    return next((found for found in sizes if found is not None), None)


def start(directory: str) -> None:
    """Observe what this process gives to `autotune.steps`."""
    import autotune
    import autotune.api

    observer = Observer(Log(directory), os.environ.get("CASES_SIZE", "0"))
    steps: Callable[..., Any] = autotune.steps

    def observed_steps(loader: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        caller = sys._getframe(1)
        where = (caller.f_code.co_filename, caller.f_lineno)
        return observer.observe(steps(loader, *args, **options), where)

    autotune.steps = autotune.api.steps = observed_steps


if os.environ.get("CASES_LOG"):
    start(os.environ["CASES_LOG"])
