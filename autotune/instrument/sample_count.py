"""How many samples a batch holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

# Batches that are looked at before it is decided where they tell their number of samples.
NUM_LEARNED = 3
# Containers within containers are looked into so deep.
_DEPTH = 3

# Where in a batch a length stands: the keys to a part of it, and an axis of that tensor; of a list
# or tuple, _ENTRIES.
_ENTRIES = -1
Place = tuple[tuple[Hashable, ...], int]


class SampleCounter:
    """Counts the samples of batches whose loader does not draw them by a sampler.

    What a batch looks like is the script's own affair: time first, a dict of images and boxes, a
    list of strings. So the places where each of the first batches has as many entries as a batch
    should hold samples are found, and later batches are counted there. Where there is none, but all
    tensors agree on a first dimension, the loader makes batches of a size of its own.

    Args:
        batch_size: Samples that a full batch should hold.
        is_certain: Whether batches hold as many even if no place shows it: torch's DataLoader
            batches them itself.
        counts_batches: Whether the batch size of 1 stands for a batch of any size, which the
            dataset makes: it is what the tensors agree on where they do.
    """

    def __init__(self, batch_size: int, *, is_certain: bool, counts_batches: bool = False) -> None:
        self.own_batch_size: int | None = None
        self._batch_size = batch_size
        self._is_certain = is_certain
        self._counts_batches = counts_batches
        self._places: list[Place] | None = None
        self._num_learned = 0

    def learn(self, batch: object) -> None:
        """Look at a full batch; the first few decide."""
        if self._num_learned >= NUM_LEARNED:
            return
        self._num_learned += 1
        lengths = dict(_lengths(batch, (), _DEPTH))
        if self._places is None:
            self._places = [p for p, length in lengths.items() if length == self._batch_size]
            # The first axis is where samples stand as a rule.
            self._places.sort(key=lambda place: (max(0, place[1]), len(place[0])))
            first = {length for (_, axis), length in lengths.items() if axis == 0}
            agrees = len(first) == 1 and first != {1} and not self._is_certain
            if agrees and (not self._places or self._counts_batches):
                self._places = []
                [self.own_batch_size] = first
        else:
            self._places = [p for p in self._places if lengths.get(p) == self._batch_size]

    @property
    def knows(self) -> bool:
        """Whether it can be told how many samples a batch holds."""
        return bool(self._places or self.own_batch_size or self._is_certain)

    def count(self, batch: object) -> int:
        """Samples in a batch; a last one of an epoch may hold fewer than the others."""
        lengths = dict(_lengths(batch, (), _DEPTH))
        for place in self._places or ():
            if place in lengths:
                return min(lengths[place], self._batch_size)
        if self.own_batch_size is not None:
            return next((n for (_, axis), n in lengths.items() if axis == 0), self.own_batch_size)
        return self._batch_size


def _lengths(
    part: Any,  # noqa: ANN401
    keys: tuple[Hashable, ...],
    depth: int,
) -> Iterator[tuple[Place, int]]:
    """The lengths of all tensors' axes and of all lists in a batch, and where they stand."""
    shape = getattr(part, "shape", None)
    if shape is not None:
        for axis, length in enumerate(shape):
            yield (keys, axis), int(length)
    elif isinstance(part, Mapping) and depth:
        for key, inner in part.items():
            yield from _lengths(inner, (*keys, key), depth - 1)
    elif isinstance(part, (list, tuple)) and depth:
        yield (keys, _ENTRIES), len(part)
        for index, inner in enumerate(part[:4]):
            yield from _lengths(inner, (*keys, index), depth - 1)
