"""What a loop pays for memory that it gives back and takes again."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.blocks import Sample
from autotune.measurement import counted_blocks

# What clearing and mapping a page takes, about. On a virtual machine of 2 cores (AMD EPYC) it was
# 2.5 us, without virtualisation it is a fraction of one (docs/allocator.md).
_FAULT_S = 1e-6


def page_fault_share(samples: Sequence[Sample]) -> float:
    """About what share of a loop's time its process spends on pages that it takes anew.

    Args:
        samples: Of a trial.
    """
    blocks = counted_blocks(samples)
    num_faults = sum(block.num_page_faults for block in blocks)
    return num_faults * _FAULT_S / sum(block.duration_s for block in blocks)
