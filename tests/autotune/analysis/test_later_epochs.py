"""What is made of samples that load faster when they are asked for again."""

import pytest

from autotune.analysis.later_epochs import find_later_epochs
from autotune.blocks import Revisit


def found(first_s, again_s, first_bytes=0, again_bytes=0, **changes):
    revisit = Revisit(
        num_samples=30,
        first_s=first_s,
        again_s=again_s,
        first_read_bytes=30 * first_bytes,
        again_read_bytes=30 * again_bytes,
    )
    values = {"samples_per_s": 20.0, "samples_per_epoch": 1000, "memory_bytes": 10**10}
    return find_later_epochs(revisit, **{**values, **changes})


def test_a_dataset_that_keeps_what_it_loaded_is_measured_from_what_it_kept():
    later = found(0.05, 0.00002)
    assert later.num_repeated == 10
    assert "50 ms to load for the first time, and 20 µs" in later.note
    assert "keeps what it has loaded" in later.note
    # Files that are not read again were decoded into memory.
    assert "keeps" in found(0.05, 0.00002, first_bytes=100_000).note


def test_files_in_the_cache_count_where_all_of_them_fit():
    files = {"first_bytes": 10**6, "again_bytes": 10**6}
    assert found(0.05, 0.005, **files).num_repeated == 10
    assert found(0.05, 0.005, **files, memory_bytes=10**9).num_repeated == 0
    assert found(0.05, 0.005, **files, samples_per_epoch=None).num_repeated == 0


@pytest.mark.parametrize(
    ("first_s", "again_s", "samples_per_s"),
    [(0.05, 0.04, 20.0), (0.05, 0.02, 20.0), (1e-5, 1e-6, 1000.0)],
)
def test_small_differences_are_no_matter(first_s, again_s, samples_per_s):
    assert found(first_s, again_s, samples_per_s=samples_per_s) is None


def test_nothing_is_said_where_samples_could_not_be_asked_for():
    values = {"samples_per_s": 1.0, "samples_per_epoch": 1, "memory_bytes": 1}
    assert find_later_epochs(None, **values) is None
