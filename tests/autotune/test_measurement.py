import dataclasses

import pytest

from autotune.blocks import Interference, Probes
from autotune.config import ThroughputConfig
from autotune.measurement import epochs_differ, summarise, sustained_share

from . import made_up
from .made_up import PLAIN, SETTLING, block, block_at, sample

PROBES = Probes(compute_units_per_s=5000.0, load_units_per_s=7000.0, epoch_start_s=0.425)


def test_throughput_is_samples_over_time_with_waits_included():
    config = dataclasses.replace(PLAIN, gradient_accumulation_steps=4)
    found = summarise([sample(block(), block(duration_s=3.0))], config)
    assert found.samples_per_s == pytest.approx(80 / 4)
    assert found.units_per_s == pytest.approx(8000 / 4)
    assert found.seconds_per_step == pytest.approx(4 / 20)
    assert found.seconds_per_optimizer_step == pytest.approx(4 * 4 / 20)
    assert found.data_wait_share == pytest.approx(0.25)
    assert found.cpu_utilisation == pytest.approx(4 / 8)
    assert found.cpu_s_per_sample == pytest.approx(4 / 80)
    assert (found.measured_s, found.num_steps, found.num_blocks) == (4.0, 20, 2)


def test_utilisation_is_of_the_cores_that_may_be_used():
    found = summarise([sample(block(capacity_cores=1.5, cpu_s=1.2, throttled_s=0.3))], PLAIN)
    assert found.cpu_utilisation == pytest.approx(0.8)
    assert found.throttled_share == pytest.approx(0.2)


def test_time_spun_away_while_waiting_is_told_where_there_are_workers():
    spinning = sample(block(cpu_s=2.0, wait_cpu_s=0.5))
    with_workers = dataclasses.replace(PLAIN, num_workers=2)
    assert summarise([spinning], with_workers).wait_cpu_share == pytest.approx(0.25)
    assert summarise([spinning], PLAIN).wait_cpu_share is None
    assert summarise([sample(block(cpu_s=0.0))], with_workers).wait_cpu_share == 0.0


def test_batches_taken_from_a_full_buffer_are_not_throughput():
    # 10 steps were taken, 8 of them from the buffer: the loader made 2 in that second.
    found = summarise([sample(block(ready_change=-8))], PLAIN)
    assert found.samples_per_s == pytest.approx(4 * 2)
    assert found.units_per_s == pytest.approx(400 * 2)
    assert found.seconds_per_step == pytest.approx(0.5)


def test_a_buffer_that_fills_earns_nothing():
    assert sustained_share([block(ready_change=5)]) == 1.0


def test_a_buffer_that_gave_everything_leaves_a_positive_rate():
    assert sustained_share([block(num_steps=2, ready_change=-8)]) == 0.25


def test_the_buffer_is_balanced_over_all_blocks_since_the_loop_is_frozen_between_them():
    drained, filled = sample(block(ready_change=-8)), sample(block(ready_change=+8))
    found = summarise([drained, filled], PLAIN)
    assert found.samples_per_s == pytest.approx(4 * 20 / 2)


def test_a_buffer_that_epochs_empty_is_not_balanced():
    assert sustained_share([block(ready_change=-8), block(num_epoch_ends=1)]) == 1.0


def test_as_many_epoch_ends_are_charged_as_belong_to_the_steps():
    # Of 20 steps 19 wait 10 ms; the end of an epoch, which took 0.41 s, was seen once.
    blocks = [
        block(wait_s=0.1),
        block(wait_s=0.5, num_epoch_ends=1, epoch_end_s=0.41),
    ]
    found = summarise([sample(*blocks)], PLAIN, steps_per_epoch=5)
    assert found.epoch_end_s == pytest.approx(0.4)
    # Four belong to 20 steps with epochs of 5.
    assert found.samples_per_s == pytest.approx(80 / (2 + 3 * 0.4))
    assert found.seconds_per_step == pytest.approx((2 + 3 * 0.4) / 20)
    # One belongs to 40 steps with epochs of 40, so that half of the one seen is taken off.
    rare = summarise([sample(*blocks)], PLAIN, steps_per_epoch=40)
    assert rare.samples_per_s == pytest.approx(80 / (2 - 0.5 * 0.4))
    assert rare.measured_s == 2.0
    assert summarise([sample(*blocks)], PLAIN).samples_per_s == pytest.approx(40)


def test_with_workers_an_epoch_end_that_was_seen_is_not_taken_off():
    """What follows it was loaded meanwhile: three steps of which the first waits for all."""
    ends = block(num_steps=3, num_epoch_ends=1, epoch_end_s=0.6, wait_s=0.6, duration_s=0.65)
    config = dataclasses.replace(PLAIN, num_workers=4, prefetch_factor=2)
    found = summarise([sample(ends, ends)], config, steps_per_epoch=7)
    assert found.seconds_per_step == pytest.approx(0.65 / 3)


def test_an_epoch_end_that_was_not_seen_is_charged_as_probed():
    # An ordinary step waits 25 ms.
    found = summarise([sample(block())], PLAIN, steps_per_epoch=5, probes=PROBES)
    assert found.epoch_end_s == pytest.approx(0.4)
    assert found.samples_per_s == pytest.approx(40 / (1 + 2 * 0.4))
    unseen = summarise([sample(block())], PLAIN, steps_per_epoch=5)
    assert unseen.epoch_end_s is None
    assert unseen.samples_per_s == pytest.approx(40)
    once = dataclasses.replace(PROBES, epoch_start_s=None)
    assert summarise([sample(block())], PLAIN, steps_per_epoch=5, probes=once).epoch_end_s is None


def test_an_epoch_end_that_is_cheaper_than_a_step_earns_nothing():
    cheap = dataclasses.replace(PROBES, epoch_start_s=0.001)
    found = summarise([sample(block())], PLAIN, steps_per_epoch=5, probes=cheap)
    assert found.epoch_end_s == 0.0
    assert found.samples_per_s == pytest.approx(40)


def test_blocks_of_which_every_step_ends_an_epoch_can_be_summarised():
    ends = block(num_steps=2, num_epoch_ends=2, epoch_end_s=0.5, wait_s=0.5)
    found = summarise([sample(ends)], PLAIN, steps_per_epoch=1)
    assert found.samples_per_s == pytest.approx(8)


def test_disturbed_blocks_are_reported_and_count_only_if_there_are_no_others():
    quiet, disturbed = block(), block(duration_s=5.0, other_cpu_s=4.0)
    found = summarise([sample(disturbed), sample(quiet)], PLAIN)
    assert found.samples_per_s == pytest.approx(40)
    assert (found.num_blocks, found.num_disturbed) == (2, 1)
    alone = summarise([sample(disturbed)], PLAIN)
    assert alone.samples_per_s == pytest.approx(8)
    assert (alone.num_blocks, alone.num_disturbed) == (1, 1)


def test_memory_is_the_most_that_any_sample_held():
    samples = [
        sample(block(), memory_bytes=7, shared_memory_bytes=1),
        sample(block(), memory_bytes=3, shared_memory_bytes=2),
    ]
    found = summarise(samples, PLAIN)
    assert (found.peak_memory_bytes, found.shared_memory_bytes) == (7, 2)
    assert not found.uses_device
    assert found.device_memory_share is found.num_memory_retries is None


def test_of_several_devices_the_fullest_counts():
    fuller = made_up.device(reserved_bytes=5, used_bytes=60, number=1)
    samples = [
        sample(block(), devices=(made_up.device(reserved_bytes=9, used_bytes=50), fuller)),
        sample(block(), devices=(made_up.device(reserved_bytes=9, used_bytes=55, num_retries=2),)),
    ]
    found = summarise(samples, PLAIN)
    assert found.device_memory_bytes == 5
    assert found.device_memory_share == pytest.approx(0.6)
    assert found.num_memory_retries == 2


def test_on_a_device_the_share_of_data_is_that_of_its_own_time():
    waits = block(duration_s=1.0, wait_s=0.5)
    assert summarise([sample(waits)], PLAIN).data_wait_share == pytest.approx(0.5)
    hidden = block(duration_s=1.0, wait_s=0.5, stall_s=0.1)
    assert summarise([sample(hidden)], PLAIN).data_wait_share == pytest.approx(0.1)


def test_a_block_in_which_a_step_was_compiled_is_measured_again():
    assert block(num_compiled=1).interference == (Interference.COMPILATION,)


def test_warming_up_and_probing_are_reported():
    settling = dataclasses.replace(SETTLING, settled=False)
    found = summarise([sample(settling=settling), sample(block())], PLAIN, probes=PROBES)
    assert (found.warm_up_s, found.settled) == (0.5, False)
    assert (found.compute_units_per_s, found.load_units_per_s) == (5000.0, 7000.0)
    bare = summarise([sample(block())], ThroughputConfig(batch_size=4), steps_per_epoch=9)
    assert (bare.warm_up_s, bare.settled, bare.steps_per_epoch) == (0.0, True, 9)
    assert bare.compute_units_per_s is None


def epochs(first, later, num_later=3):
    """Blocks of a first epoch, one in which it ends, and those of later ones, by their rates."""
    return [
        *(block_at(first) for _ in range(3)),
        block(num_epoch_ends=1),
        *(block_at(later) for _ in range(num_later)),
    ]


def test_later_epochs_count_where_they_run_at_another_rate():
    found = summarise([sample(*epochs(100.0, 900.0))], PLAIN)
    assert found.later_epochs_ratio == pytest.approx(9.0)
    assert found.units_per_s == pytest.approx(900.0)
    assert epochs_differ(found.later_epochs_ratio)


def test_all_epochs_count_where_they_are_alike():
    found = summarise([sample(*epochs(100.0, 110.0))], PLAIN)
    assert found.later_epochs_ratio == pytest.approx(1.1)
    assert not epochs_differ(found.later_epochs_ratio)
    assert found.num_blocks == 7
    assert not epochs_differ(None)


def test_an_epoch_after_a_loop_has_begun_anew_is_no_later_one():
    samples = [sample(*epochs(100.0, 100.0), life_steps=70), sample(*epochs(500.0, 500.0))]
    assert summarise(samples, PLAIN).later_epochs_ratio == pytest.approx(1.0)


def test_gpu_utilisation_is_the_mean_over_time_of_the_blocks_that_tell():
    told = (block(duration_s=1.0, gpu_utilisation=0.4), block(duration_s=3.0, gpu_utilisation=0.8))
    assert summarise([sample(*told, block())], PLAIN).gpu_utilisation == pytest.approx(0.7)
    assert summarise([sample(block())], PLAIN).gpu_utilisation is None


def test_gpu_utilisation_of_disturbed_blocks_does_not_count():
    quiet = block(gpu_utilisation=0.4)
    disturbed = block(gpu_utilisation=1.0, gpu_other_utilisation=0.6)
    found = summarise([sample(quiet, disturbed)], PLAIN)
    assert found.gpu_utilisation == pytest.approx(0.4)
    assert found.num_disturbed == 1


@pytest.mark.parametrize(
    ("samples_per_epoch", "steps_per_epoch", "num_epoch_ends", "expected"),
    [
        # Batches of 4, 4 and 2: of what was seen, too few were small.
        (10, 3, 5, 10 / 3),
        # The last one is dropped, or never reached, or full.
        (10, 2, 5, 4.0),
        (10, 3, 0, 4.0),
        (12, 3, 5, 4.0),
        (None, None, 5, 4.0),
    ],
)
def test_samples_of_an_update_are_those_of_whole_epochs(
    samples_per_epoch, steps_per_epoch, num_epoch_ends, expected
):
    seen = block(num_updates=5, num_epoch_ends=num_epoch_ends)
    found = summarise(
        [sample(seen)],
        PLAIN,
        steps_per_epoch=steps_per_epoch,
        samples_per_epoch=samples_per_epoch,
    )
    assert found.samples_per_update == pytest.approx(2 * expected)


@pytest.mark.parametrize(
    ("num_steps", "num_updates", "known", "expected"),
    [
        # Cut before the end of an update, and after one in the middle.
        (12, 0, 16, 16),
        (12, 1, 16, 16),
        (16, 1, 16, 16),
        # What was seen before does not hold for good.
        (12, 3, 2, 4),
        (1, 0, None, 1),
    ],
)
def test_an_optimizer_step_that_is_cut_has_as_many_micro_steps_as_before(
    num_steps, num_updates, known, expected
):
    cut = sample(block(num_steps=num_steps, num_updates=num_updates, duration_s=30.0))
    found = summarise([cut], PLAIN, steps_per_update=known)
    seconds = found.seconds_per_optimizer_step / found.seconds_per_step
    assert seconds == pytest.approx(expected)
