"""Whether a sample loads faster when it is asked for again."""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from autotune.blocks import Revisit
from autotune.instrument.loader_facts import is_iterable_dataset

# So many samples are loaded twice, or as many as load in so many seconds. The first ones pay for
# what is done only once: opening a file, importing a decoder.
_NUM_SAMPLES, _NUM_FIRST, _LIMIT_S = 34, 2, 1.0
_SEED = 20
_IO = Path("/proc/self/io")


@dataclasses.dataclass(frozen=True, slots=True)
class _Access:
    """What it took to load one sample."""

    duration_s: float
    read_bytes: int


def revisit(loader: Any) -> Revisit | None:  # noqa: ANN401
    """Load samples of a map-style dataset twice, in this process.

    None where samples cannot be asked for one by one, or one of them cannot be loaded.
    """
    dataset = getattr(loader, "dataset", None)
    if "torch" not in sys.modules or dataset is None or is_iterable_dataset(dataset):
        return None
    try:
        number = len(dataset)
        indices = random.Random(_SEED).sample(range(number), min(number, _NUM_SAMPLES))
        first: list[_Access] = []
        end_s = time.monotonic() + _LIMIT_S
        for index in indices:
            first.append(_load(dataset, index))
            if time.monotonic() > end_s:
                break
        # All others lie between the two: what fits into a processor's cache has left it.
        again = [_load(dataset, index) for index in indices[: len(first)]]
    except Exception:  # The dataset is the user's: whatever it raises, it is not to be asked so.
        return None
    if len(first) <= _NUM_FIRST:
        return None
    return Revisit(
        num_samples=len(first) - _NUM_FIRST,
        first_s=_typical(first),
        again_s=_typical(again),
        first_read_bytes=sum(access.read_bytes for access in first[_NUM_FIRST:]),
        again_read_bytes=sum(access.read_bytes for access in again[_NUM_FIRST:]),
    )


def preload(dataset: Any, number: int) -> list[int]:  # noqa: ANN401
    """Load some samples, so that a dataset that keeps them has them; gives their indices."""
    indices = random.Random(_SEED).sample(range(len(dataset)), min(number, len(dataset)))
    for index in indices:
        dataset[index]
    return indices


def _load(dataset: Any, index: int) -> _Access:  # noqa: ANN401
    before, start_s = _read_bytes(), time.monotonic()
    dataset[index]
    duration_s = time.monotonic() - start_s
    return _Access(duration_s, _read_bytes() - before)


def _typical(accesses: list[_Access]) -> float:
    return statistics.median(access.duration_s for access in accesses[_NUM_FIRST:])


def _read_bytes() -> int:
    """What this process has read from files by now, from the file cache or not.

    Source: proc_pid_io(5), rchar. Reading it costs 10 µs, and some 100 bytes of itself.
    """
    try:
        return int(_IO.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
