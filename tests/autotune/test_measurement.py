import pytest

from autotune.measurement import Block, Sample, Usage, summarise, sustained_steps


def block(num_steps=10, duration_s=1.0, ready_change=0, **changes):
    values = {
        "num_steps": num_steps,
        "num_samples": 4 * num_steps,
        "num_units": 400.0 * num_steps,
        "duration_s": duration_s,
        "wait_s": 0.25 * duration_s,
        "first_batch_at_s": 0.0,
        "ready_change": ready_change,
    }
    return Block(**{**values, **changes})


def sample(*blocks, cpu_s=1.0, other_cpu_s=0.0, memory_bytes=100):
    wall_s = sum(b.duration_s for b in blocks)
    usage = Usage(wall_s=wall_s, cpu_s=cpu_s, other_cpu_s=other_cpu_s, memory_bytes=memory_bytes)
    return Sample(blocks=blocks, usage=usage, usable_cores=2)


def test_throughput_is_samples_over_time_with_waits_included():
    found = summarise([sample(block(), block(duration_s=3.0))], gradient_accumulation_steps=4)
    assert found.samples_per_s == pytest.approx(80 / 4)
    assert found.units_per_s == pytest.approx(8000 / 4)
    assert found.seconds_per_step == pytest.approx(4 / 20)
    assert found.seconds_per_optimizer_step == pytest.approx(4 * 4 / 20)
    assert found.data_wait_share == pytest.approx(0.25)
    assert found.cpu_utilisation == pytest.approx(1 / 8)
    assert found.cpu_s_per_sample == pytest.approx(1 / 80)


def test_batches_taken_from_a_full_buffer_are_not_throughput():
    # 10 steps were taken, 8 of them from the buffer: the loader made 2 in that second.
    found = summarise([sample(block(ready_change=-8))], gradient_accumulation_steps=1)
    assert found.samples_per_s == pytest.approx(4 * 2)
    assert found.seconds_per_step == pytest.approx(0.5)


def test_a_buffer_that_fills_earns_nothing():
    assert sustained_steps([block(ready_change=5)]) == 10


def test_a_buffer_that_gave_everything_leaves_a_positive_rate():
    assert sustained_steps([block(num_steps=2, ready_change=-8)]) == 0.5


def test_the_buffer_is_balanced_within_a_sample_and_not_across_pauses():
    drained, steady = sample(block(ready_change=-8)), sample(block(ready_change=+8))
    found = summarise([drained, steady], gradient_accumulation_steps=1)
    assert found.samples_per_s == pytest.approx(4 * (2 + 10) / 2)


def test_disturbed_samples_are_reported_and_count_only_if_there_are_no_others():
    quiet, disturbed = sample(block()), sample(block(duration_s=5.0), other_cpu_s=4.0)
    found = summarise([disturbed, quiet], gradient_accumulation_steps=1)
    assert found.samples_per_s == pytest.approx(40)
    assert found.num_disturbed == 1
    alone = summarise([disturbed], gradient_accumulation_steps=1)
    assert alone.samples_per_s == pytest.approx(8)
    assert alone.num_disturbed == 1
