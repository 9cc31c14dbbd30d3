"""Whether later epochs cost something else than the first one, and how they are measured."""

from __future__ import annotations

import dataclasses

from autotune.blocks import Revisit

# What loading takes less the second time matters from this share of the time of a sample on.
_WORTH_TELLING = 0.1
# Trials load the samples that they repeat before they begin: so many, or as many as take so long.
_FEWEST, _MOST, _PRELOAD_S = 8, 256, 0.5
# Files stay in the system's cache where they take no more than this share of the memory.
_CACHED_SHARE = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaterEpochs:
    """How later epochs differ from the first one.

    Attributes:
        num_repeated: Samples that trials draw all batches from, so that they run as later epochs
            do; 0 where they run as the first one does.
        note: What to tell the user.
    """

    num_repeated: int
    note: str


def find_later_epochs(
    revisit: Revisit | None,
    *,
    samples_per_s: float,
    samples_per_epoch: int | None,
    memory_bytes: int,
) -> LaterEpochs | None:
    """How later epochs differ from the first one; None where that is no matter.

    Args:
        revisit: What it took to load samples again.
        samples_per_s: Throughput of the baseline.
        samples_per_epoch: Samples of an epoch, where they are known.
        memory_bytes: Of the machine.
    """
    if revisit is None or not revisit.is_faster:
        return None
    if (revisit.first_s - revisit.again_s) * samples_per_s < _WORTH_TELLING:
        return None
    times = (
        f"a sample takes {_seconds(revisit.first_s)} to load for the first time, and "
        f"{_seconds(revisit.again_s)} to load again"
    )
    number = min(_MOST, max(_FEWEST, int(_PRELOAD_S / revisit.first_s)))
    if revisit.is_kept:
        note = (
            f"{times}: the dataset keeps what it has loaded. What is measured are the epochs after "
            "the first; the first one of each worker takes longer than stated"
        )
        return LaterEpochs(num_repeated=number, note=note)
    sample_bytes = revisit.again_read_bytes / revisit.num_samples
    if samples_per_epoch is None or samples_per_epoch * sample_bytes > _CACHED_SHARE * memory_bytes:
        note = (
            f"{times}, from the system's file cache. The files of an epoch may not fit into it: "
            "what is measured are first loads"
        )
        return LaterEpochs(num_repeated=0, note=note)
    note = (
        f"{times}, from the system's file cache, which can hold all files of an epoch. What is "
        "measured are the epochs after the first, which takes longer than stated"
    )
    return LaterEpochs(num_repeated=number, note=note)


def _seconds(seconds: float) -> str:
    """A short time for people."""
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"
