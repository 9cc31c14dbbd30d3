"""What a GPU's memory forbids: settings that nearly fill it, and batches that will not fit."""

import dataclasses
import types

import pytest

from autotune.analysis.knowledge import Knowledge
from autotune.analysis.memory_forecast import foresee_exhaustion
from autotune.blocks import Sample
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.memory_order import needs_as_much
from autotune.report.device import device as told
from autotune.study.records import Phase

from .. import made_up

FAILED = Failure(cause=FailureCause.OUT_OF_DEVICE_MEMORY, message="CUDA out of memory")


def on_device(batch_size, *, num_workers=0, **memory):
    """A trial on a GPU."""
    sample = made_up.sample(made_up.block(), devices=(made_up.device(**memory),))
    config = ThroughputConfig(batch_size=batch_size, num_workers=num_workers)
    return made_up.record_of([sample], config=config)


def failed_at(batch_size, cause=FailureCause.OUT_OF_DEVICE_MEMORY, number=5):
    return made_up.record_of(
        [made_up.sample(made_up.block())],
        config=ThroughputConfig(batch_size=batch_size),
        number=number,
        measurement=None,
        failure=Failure(cause=cause, message="no room"),
    )


def foreseen(batch_size, records, headroom=0.1):
    return foresee_exhaustion(
        ThroughputConfig(batch_size=batch_size),
        records,
        memory_left_bytes=10**12,
        shared_memory_left_bytes=None,
        gpu_headroom=headroom,
    )


# 10 bytes of 100 are the context's, and 2 for each sample.
RAN = (
    on_device(8, allocated_bytes=16, reserved_bytes=20, used_bytes=30),
    on_device(16, allocated_bytes=32, reserved_bytes=40, used_bytes=50),
)


def test_a_batch_that_will_not_fit_is_not_started():
    assert foreseen(32, RAN) is None
    failure = foreseen(48, RAN)
    assert failure.cause is FailureCause.NO_HEADROOM
    assert "--gpu-headroom" in failure.message
    assert foreseen(45, RAN, headroom=0.0) is None


def test_where_a_larger_batch_ran_nothing_is_reckoned():
    assert foreseen(48, (*RAN, on_device(64, allocated_bytes=80, used_bytes=90))) is None


def test_one_batch_size_does_not_tell_what_another_takes():
    assert foreseen(1000, RAN[:1]) is None


def test_smaller_batches_are_not_forecast_from_larger_ones():
    assert foreseen(4, (on_device(8, allocated_bytes=80, used_bytes=99),)) is None


def test_what_ran_out_rules_out_all_larger_batches_whatever_their_workers():
    exhausted = ThroughputConfig(batch_size=16, num_workers=4)
    same = ThroughputConfig(batch_size=16)
    assert needs_as_much(same, exhausted, FailureCause.OUT_OF_DEVICE_MEMORY)
    assert not needs_as_much(same, exhausted, FailureCause.OUT_OF_MEMORY)
    smaller = ThroughputConfig(batch_size=8, num_workers=8)
    assert not needs_as_much(smaller, exhausted, FailureCause.NO_HEADROOM)
    known = Knowledge.of([failed_at(16)])
    assert known.rules_out(ThroughputConfig(batch_size=32))
    assert not known.rules_out(ThroughputConfig(batch_size=8))


def test_the_largest_batch_that_fits_is_told():
    records = (*RAN, failed_at(32, FailureCause.NO_HEADROOM), failed_at(64))
    best = ThroughputConfig(batch_size=8)
    view = types.SimpleNamespace(records=records, best=best, baseline=best)
    [line] = told(view)
    assert line.startswith("the largest batch size that fits on the GPU is 16: it takes 50 %")
    assert line.endswith("32 takes too much")
    assert told(types.SimpleNamespace(records=RAN, best=best, baseline=best)) == []


def copying(copy_s, **changes):
    record = on_device(8)
    measurement = dataclasses.replace(record.measurement, copy_s=copy_s, **changes)
    return dataclasses.replace(record, measurement=measurement)


def told_of(record):
    return told(types.SimpleNamespace(records=(record,), best=record.config, baseline=None))


def test_copies_that_keep_the_loop_waiting_are_told():
    # A step of the trial takes 100 ms.
    [line] = told_of(copying(0.02, gpu_utilisation=0.3))
    assert line.startswith("the loop waits 20 ms of a step of 100 ms for copies")
    assert "non_blocking=True" in line
    assert told_of(copying(0.001, gpu_utilisation=0.3)) == []
    # A busy GPU lets copies wait, and loses nothing.
    assert told_of(copying(0.09, gpu_utilisation=0.98)) == []
    assert told_of(copying(0.02)) == []


@pytest.mark.parametrize(
    ("num_samples", "num_steps", "num_compiled", "is_told"),
    [(20, 3, 1, True), (20, 2, 1, False), (16, 2, 1, False), (20, 3, 0, False)],
)
def test_a_smaller_last_batch_of_compiled_steps_is_told(
    num_samples, num_steps, num_compiled, is_told
):
    settling = dataclasses.replace(made_up.SETTLING, num_compiled=num_compiled)
    record = copying(None, samples_per_epoch=num_samples, steps_per_epoch=num_steps)
    samples = (Sample(blocks=(made_up.block(),), settling=settling),)
    record = dataclasses.replace(record, samples=samples, phase=Phase.CONFIRM)
    assert bool(told_of(record)) == is_told


def test_what_keeps_its_memory_tells_nothing_of_what_gives_it_back():
    returned = ThroughputConfig(batch_size=8)
    kept = ThroughputConfig(batch_size=4, malloc="kept")
    assert not needs_as_much(returned, kept, FailureCause.OUT_OF_MEMORY)
    larger = dataclasses.replace(kept, batch_size=16)
    assert needs_as_much(larger, returned, FailureCause.OUT_OF_MEMORY)


def test_workers_that_share_no_memory_tell_nothing_of_those_that_do():
    forked = ThroughputConfig(batch_size=8, num_workers=2)
    spawned = dataclasses.replace(forked, batch_size=4, multiprocessing_context="spawn")
    assert not needs_as_much(forked, spawned, FailureCause.OUT_OF_MEMORY)
    assert needs_as_much(forked, ThroughputConfig(batch_size=4), FailureCause.OUT_OF_MEMORY)


def test_what_cudnn_tries_its_algorithms_in_tells_nothing_of_steps_that_try_none():
    trying = ThroughputConfig(batch_size=4, cudnn_benchmark=True)
    plain = ThroughputConfig(batch_size=8)
    assert not needs_as_much(plain, trying, FailureCause.OUT_OF_DEVICE_MEMORY)
    larger = dataclasses.replace(trying, batch_size=16)
    assert needs_as_much(larger, plain, FailureCause.OUT_OF_DEVICE_MEMORY)
