from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from mm_rec import ConfigError, DataError
from mm_rec.data import WindowOrder
from mm_rec.data.permutation import Permutation


@pytest.mark.parametrize(
    "sizes", [range(1, 200), (4_095, 4_096, 4_097, 5_000, 65_536, 65_537, 100_003)]
)
def test_permutation_holds_every_number_once(sizes: range | tuple[int, ...]) -> None:
    for size in sizes:
        images = np.concatenate(list(Permutation(size, key=(size, 1)).blocks(0, size)))
        assert (np.bincount(images, minlength=size) == 1).all()


def test_permutation_can_start_anywhere() -> None:
    permutation = Permutation(10_000, key=(3,))
    whole = permutation(np.arange(10_000))
    for start, stop in ((0, 10_000), (1, 2), (4_095, 4_098), (9_999, 10_000), (77, 77)):
        images = [value for block in permutation.blocks(start, stop) for value in block.tolist()]
        assert images == whole[start:stop].tolist()


@pytest.mark.parametrize("size", [24, 5_000])
def test_every_number_comes_first_about_as_often(size: int) -> None:
    first, last = np.array([0]), np.array([size - 1])
    images = np.array(
        [
            [permutation(first)[0], permutation(last)[0]]
            for permutation in (Permutation(size, key=(seed, 0)) for seed in range(2_400))
        ]
    )
    for column in images.T:
        counts = np.bincount(column * 24 // size, minlength=24)
        # The 99.9 % quantile at 23 degrees of freedom; the keys are fixed, so is the outcome.
        assert ((counts - 100) ** 2 / 100).sum() < 49.7
    assert abs(np.corrcoef(images.T)[0, 1]) < 0.1


def test_large_permutations_leave_no_trace_of_the_order() -> None:
    size = 100_000
    images = Permutation(size, key=(0, 0))(np.arange(size)).astype(float)
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(images, np.arange(size))[0, 1]) < 0.015
    # A random permutation has one pair of neighbours in a row at each place, on average 1 in all.
    assert np.count_nonzero(np.diff(images) == 1) < 10


def test_order_depends_on_seed_and_epoch_and_is_cut_to_whole_steps() -> None:
    order = WindowOrder(103, effective_batch_size=10, seed=1)
    first = list(order)
    assert len(first) == len(order) == 100
    assert len(set(first)) == 100
    order.seek(epoch=1)
    assert list(order) != first
    order.seek(epoch=0, start=40)
    assert len(order) == 60
    assert list(order) == first[40:]
    assert list(WindowOrder(103, effective_batch_size=10, seed=2)) != first
    # A prefix whatever the effective batch size is.
    assert list(WindowOrder(103, effective_batch_size=1, seed=1))[:100] == first
    with pytest.raises(DataError, match="fewer than one optimizer step"):
        WindowOrder(9, effective_batch_size=10, seed=0)
    with pytest.raises(ConfigError, match="start"):
        order.seek(epoch=0, start=101)


def test_a_trillion_windows_take_no_memory_and_no_preparation() -> None:
    order = WindowOrder(10**12, effective_batch_size=8, seed=0)
    order.seek(epoch=3, start=10**11)
    start_s = time.monotonic()
    tracemalloc.start()
    try:
        indices = list(itertools.islice(order, 5_000))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(indices)) == 5_000
    assert min(indices) < 10**10 < 9 * 10**11 < max(indices) < 10**12
    assert peak_bytes < 5_000_000
    assert time.monotonic() - start_s < 10.0
