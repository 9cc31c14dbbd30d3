"""Copies to a device are told from conversions that stay on the host."""

import sys

import torch

from autotune.instrument.copies import CopyWatch


def watched(calls, *, allocates):
    """Seconds that are taken for copies, of calls each of which takes memory on a device or not."""
    given = iter(range(1000))
    watch = CopyWatch((lambda: next(given)) if allocates else (lambda: 0))

    def batches():
        with watch.watching():
            yield torch.ones(200, 200)

    for batch in batches():
        calls(batch)
    return watch.copy_s


def test_only_what_takes_memory_on_the_device_is_a_copy():
    # A conversion stands for a copy, on a machine without a device.
    assert watched(lambda batch: batch.to(torch.float64), allocates=True) > 0
    assert watched(lambda batch: batch.to(torch.float64), allocates=False) == 0


def test_other_work_is_none():
    assert watched(lambda batch: (batch @ batch).sum(), allocates=True) == 0


def test_who_looks_already_goes_on_looking():
    seen = []
    sys.setprofile(lambda *event: seen.append(event))
    try:
        assert watched(lambda batch: batch.to(torch.float64), allocates=True) == 0
        assert sys.getprofile() is not None
    finally:
        sys.setprofile(None)
    assert seen
