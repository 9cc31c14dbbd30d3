import math

import pytest

from autotune import BadInputError
from autotune.blocks import Interference

from .made_up import block, sample


def test_a_block_that_had_the_cores_to_itself_is_undisturbed():
    assert block(cpu_s=1.9, other_cpu_s=0.05).interference == ()


def test_others_on_crowded_cores_disturb():
    assert block(cpu_s=1.0, other_cpu_s=0.2).interference == (Interference.OTHER_PROCESSES,)
    # It is their share of the time that counts.
    assert block(duration_s=10.0, cpu_s=10.0, other_cpu_s=0.9).interference == ()


def test_what_rounding_to_ticks_can_show_in_a_short_block_is_not_taken_for_others():
    assert block(duration_s=0.25, cpu_s=0.4, other_cpu_s=0.04).interference == ()
    crowded = block(duration_s=0.25, cpu_s=0.3, other_cpu_s=0.05)
    assert crowded.interference == (Interference.OTHER_PROCESSES,)


def test_others_on_cores_that_were_left_over_do_not_disturb():
    assert block(capacity_cores=8.0, cpu_s=2.0, other_cpu_s=4.0).interference == ()
    crowded = block(capacity_cores=8.0, cpu_s=4.0, other_cpu_s=3.5)
    assert crowded.interference == (Interference.OTHER_PROCESSES,)


def test_on_many_cores_a_few_percent_of_others_do_not_disturb():
    assert block(capacity_cores=64.0, cpu_s=63.0, other_cpu_s=0.9).interference == ()
    crowded = block(capacity_cores=64.0, cpu_s=62.0, other_cpu_s=1.5)
    assert crowded.interference == (Interference.OTHER_PROCESSES,)


@pytest.mark.parametrize(("stolen_s", "disturbed"), [(0.19, False), (0.21, True)])
def test_time_that_a_hypervisor_took_disturbs(stolen_s, disturbed):
    found = block(duration_s=2.0, stolen_s=stolen_s).interference
    assert found == ((Interference.HYPERVISOR,) if disturbed else ())


def test_on_many_cores_a_little_stolen_time_does_not_disturb():
    assert block(capacity_cores=64.0, stolen_s=1.2).interference == ()
    assert block(capacity_cores=64.0, stolen_s=1.4).interference == (Interference.HYPERVISOR,)


def test_a_quota_that_the_trial_uses_up_itself_is_no_disturbance():
    quota = {"capacity_cores": 1.0, "throttled_s": 0.5}
    # In bursts, it may use less than the quota on average.
    assert block(**quota, cpu_s=0.98).interference == ()
    assert block(**quota, cpu_s=0.5).interference == ()
    others = block(**quota, cpu_s=0.5, other_cpu_s=0.5).interference
    assert others == (Interference.OTHER_PROCESSES, Interference.QUOTA)
    assert block(capacity_cores=2.0, throttled_s=0.04, cpu_s=0.5).interference == ()


def test_waiting_for_memory_disturbs():
    assert block(pressure_s=0.04).interference == ()
    assert block(pressure_s=0.06).interference == (Interference.MEMORY,)


def test_every_cause_is_named():
    everything = block(
        other_cpu_s=1.0,
        stolen_s=1.0,
        throttled_s=1.0,
        pressure_s=1.0,
        suspended_s=1.0,
        cores_changed=True,
        num_compiled=1,
        gpu_other_utilisation=1.0,
        gpu_throttled=True,
    )
    assert everything.interference == tuple(Interference)


def test_a_sample_is_disturbed_where_any_of_its_blocks_is():
    assert not sample(block(), block()).disturbed
    assert sample(block(), block(stolen_s=1.0)).disturbed
    assert not sample().disturbed


def test_kernels_of_others_disturb_from_a_limit_on():
    assert block(gpu_other_utilisation=0.05).interference == ()
    assert block(gpu_other_utilisation=0.06).interference == (Interference.GPU_PROCESSES,)


def test_a_block_without_a_gpu_knows_nothing_of_it():
    plain = block()
    assert (plain.gpu_energy_j, plain.gpu_utilisation) == (None, None)


@pytest.mark.parametrize("name", ["gpu_energy_j", "gpu_utilisation", "gpu_other_utilisation"])
def test_figures_of_a_gpu_are_finite(name):
    with pytest.raises(BadInputError, match=f"{name} must be finite"):
        block(**{name: math.inf})
