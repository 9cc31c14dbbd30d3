"""Settings that count more samples per second and make no epoch shorter are no gain."""

import pytest

from autotune.analysis.result import longer_epoch
from autotune.measurement import summarise

from ..made_up import PLAIN, block, record_of, sample


def run(*, steps_per_epoch, num_steps, duration_s, samples_per_epoch=400):
    found = block(num_steps=num_steps, duration_s=duration_s)
    samples = (sample(found),)
    measurement = summarise(
        samples, PLAIN, steps_per_epoch=steps_per_epoch, samples_per_epoch=samples_per_epoch
    )
    return record_of(samples, measurement=measurement)


BASELINE = [run(steps_per_epoch=100, num_steps=10, duration_s=1.0)]


def test_an_epoch_that_becomes_shorter_is_a_gain():
    # A tenth of the batches, each of which takes twice as long.
    faster = [run(steps_per_epoch=10, num_steps=5, duration_s=1.0)]
    assert longer_epoch(BASELINE, faster) is None


def test_an_epoch_that_becomes_longer_is_told():
    slower = [run(steps_per_epoch=50, num_steps=4, duration_s=1.0)]
    assert longer_epoch(BASELINE, slower) == pytest.approx(1.25)


def test_an_epoch_of_unknown_length_tells_nothing():
    unknown = [run(steps_per_epoch=None, num_steps=4, duration_s=1.0)]
    assert longer_epoch(BASELINE, unknown) is None
    assert longer_epoch(unknown, BASELINE) is None


def test_an_epoch_of_other_samples_tells_nothing():
    more = [run(steps_per_epoch=100, num_steps=5, duration_s=1.0, samples_per_epoch=800)]
    assert longer_epoch(BASELINE, more) is None
    untold = [run(steps_per_epoch=100, num_steps=5, duration_s=1.0, samples_per_epoch=None)]
    assert longer_epoch(untold, untold[:]) is None
