"""Loops that change their speed as they go on, by made-up blocks."""

import dataclasses
import random

import pytest

from autotune.analysis.trend import change_within_runs

from ..made_up import block_at, record


def run(change, *, noise=0.02, num_blocks=10, seed=0):
    """A run whose rate goes from 1000 to `change` times as much."""
    draw = random.Random(seed)
    last = max(1, num_blocks - 1)
    rates = (1000 * change ** (i / last) * draw.gauss(1, noise) for i in range(num_blocks))
    return record(*(block_at(rate) for rate in rates))


def test_a_loop_that_slows_down_is_found():
    found = change_within_runs([run(0.5, seed=seed) for seed in range(3)])
    assert found == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("change", [1.0, 0.95, 1.08])
def test_a_machine_that_drifts_a_little_is_no_trend(change):
    assert change_within_runs([run(change, seed=seed) for seed in range(3)]) is None


def test_runs_that_change_in_different_ways_show_no_trend():
    assert change_within_runs([run(0.6), run(1.5), run(0.6)]) is None


def test_a_few_noisy_blocks_show_nothing():
    assert change_within_runs([run(0.5, num_blocks=4)]) is None
    assert change_within_runs([run(0.8, noise=0.5)]) is None
    assert change_within_runs([]) is None


def test_a_first_epoch_unlike_the_later_ones_is_no_trend():
    first, later = [block_at(100)] * 4, [block_at(1000)] * 6
    end = dataclasses.replace(block_at(500), num_epoch_ends=1)
    runs = [record(*first, end, *later) for _ in range(3)]
    assert change_within_runs(runs) is None
