"""What `steps` gives to a script in a trial: its loader, with every batch under control."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import wrapt

from autotune.instrument.batch_source import END, BatchSource
from autotune.instrument.loop_region import LoopRegion

UnitCounter = Callable[[Any], float]


class Feeder(Protocol):
    """Decides what a pass gets."""

    def next_batch(self, asking: Pass) -> Any:  # noqa: ANN401
        """The next batch of a pass, or END."""

    def given_up(self, gone: Pass) -> None:
        """The script will take no more batches from a pass."""


class MeasuredLoader(wrapt.ObjectProxy[Any]):
    """A loader, with all that it has, whose batches come from a feeder."""

    def __init__(self, loader: Iterable[Any], feeder: Feeder, units: UnitCounter | None) -> None:
        super().__init__(loader)
        self._self_feeder = feeder
        self._self_units = units

    def __iter__(self) -> Iterator[Any]:
        return Pass(self._self_feeder, self.__wrapped__, self._self_units)


class MeasuredIterator(MeasuredLoader):
    """The same for a loader that is its own iterator."""

    def __init__(self, loader: Iterable[Any], feeder: Feeder, units: UnitCounter | None) -> None:
        super().__init__(loader, feeder, units)
        self._self_pass = Pass(feeder, loader, units)

    def __iter__(self) -> Iterator[Any]:
        return self._self_pass

    def __next__(self) -> Any:  # noqa: ANN401
        return next(self._self_pass)


class Pass:
    """One pass of the script over a loader.

    Attributes:
        loader: The loader itself.
        units: Counts the units in a batch.
        source: The batches.
        region: The loop that asks for them, once it did.
        num_asked: How many were asked for.
        is_over: Whether the last one was given.
        asked_at: The training's batch during which this pass was asked last; -1 for none.
        asked_first_s: Monotonic time at which it was asked first during that batch.
        steps_seen: Optimizer steps when it was asked last.
    """

    def __init__(
        self,
        feeder: Feeder,
        loader: Iterable[Any],
        units: UnitCounter | None,
        begin: Callable[[Any], Iterator[Any]] = iter,
    ) -> None:
        self.loader = loader
        self.units = units
        self.source = BatchSource(loader, begin)
        self.region: LoopRegion | None = None
        self.num_asked = 0
        self.is_over = False
        self.asked_at = -1
        self.asked_first_s = 0.0
        self.steps_seen = 0
        self._feeder = feeder

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:  # noqa: ANN401
        # The first batch may be asked for before the loop, to have it ready (Lightning does).
        if self.num_asked < 2:
            self.region = LoopRegion(sys._getframe(1))
        batch = self._feeder.next_batch(self)
        self.num_asked += 1
        if batch is END:
            self.is_over = True
            raise StopIteration
        return batch

    def ask_during(self, number: int) -> bool:
        """Note a request during a batch of the training; gives whether it is the first in it."""
        is_first = self.asked_at != number
        if is_first:
            self.asked_at, self.asked_first_s = number, time.monotonic()
        return is_first

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._feeder.given_up(self)
