"""Which of several ranks holds the others back by loading its batches too slowly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from autotune.study.records import TrialRecord

# A rank that waits for its loader for so much more of the time than the next one is waited for.
_APART = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank for whose loader all ranks wait.

    Attributes:
        rank: Its number.
        host: Name of its machine.
        wait_share: Share of the time that it waits for its loader, 0 to 1.
        others_share: The largest such share of the other ranks.
    """

    rank: int
    host: str
    wait_share: float
    others_share: float


def find_straggler(runs: Iterable[TrialRecord]) -> Straggler | None:
    """The rank that waits for its loader much more than all others; None where there is none.

    Since all ranks take their steps together, the others wait for it in their collective calls.

    Args:
        runs: Of one configuration.
    """
    wait_s: dict[tuple[int, str], float] = {}
    duration_s: dict[tuple[int, str], float] = {}
    for run in runs:
        for block in (block for sample in run.samples for block in sample.blocks):
            for use in block.ranks:
                key = (use.rank, use.host)
                wait_s[key] = wait_s.get(key, 0.0) + use.wait_s
                duration_s[key] = duration_s.get(key, 0.0) + use.duration_s
    shares = sorted(((wait_s[key] / duration_s[key], key) for key in wait_s), reverse=True)
    if len(shares) < 2 or shares[0][0] - shares[1][0] < _APART:
        return None
    (share, (rank, host)), (others, _) = shares[:2]
    return Straggler(rank=rank, host=host, wait_share=share, others_share=others)
