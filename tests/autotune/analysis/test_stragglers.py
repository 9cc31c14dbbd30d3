"""A rank for whose loader all others wait is found."""

from autotune.analysis.stragglers import find_straggler
from autotune.blocks import RankUse

from ..made_up import block, record


def use(rank, wait_s):
    return RankUse(
        rank=rank, host=f"node{rank}", duration_s=1.0, wait_s=wait_s, cpu_s=0.5, memory_bytes=1
    )


def test_the_rank_that_waits_much_more_than_the_next_is_named():
    blocks = [block(ranks=(use(1, 0.8), use(0, 0.1), use(2, 0.2))) for _ in range(2)]
    found = find_straggler([record(*blocks)])
    assert (found.rank, found.host) == (1, "node1")
    assert (found.wait_share, found.others_share) == (0.8, 0.2)


def test_ranks_that_wait_alike_hold_nobody_back():
    assert find_straggler([record(block(ranks=(use(0, 0.8), use(1, 0.75))))]) is None
    assert find_straggler([record(block())]) is None
