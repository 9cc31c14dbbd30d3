"""What holds a configuration back, by runs that were made up."""

import dataclasses

import pytest

from autotune.analysis.bottleneck import Bound, diagnose
from autotune.blocks import Probes
from autotune.config import ThroughputConfig
from autotune.measurement import summarise

from ..made_up import block, record

CONFIG = ThroughputConfig(batch_size=8, num_workers=2, num_threads=2)


def run(compute=None, load=None, *, rate=100.0, cpu_s=1.0, **changes):
    """A confirming run of `CONFIG` whose step and loader were probed, if they were."""
    found = record(block(num_units=rate, cpu_s=cpu_s), config=CONFIG, **changes)
    if compute is None:
        return found
    probes = Probes(compute_units_per_s=compute, load_units_per_s=load, epoch_start_s=None)
    measurement = summarise(found.samples, CONFIG, probes=probes)
    return dataclasses.replace(found, measurement=measurement)


def search(batch_size, compute_s, *, num_workers=0, num_threads=2):
    """A trial of the search whose steps compute for so long, and load as long again."""
    config = ThroughputConfig(
        batch_size=batch_size, num_workers=num_workers, num_threads=num_threads
    )
    return record(block(num_steps=1, duration_s=2 * compute_s, wait_s=compute_s), config=config)


# 10 ms a step, and 1 ms a sample: at a batch of 8, 10 ms of 18.
OVERHEAD = [search(size, 0.01 + 0.001 * size) for size in (2, 4, 8)]
# 10 ms a sample, and 1 ms a step.
PLENTY = [search(size, 0.001 + 0.01 * size) for size in (2, 4, 8)]


@pytest.mark.parametrize(
    ("compute", "load", "searched", "bound"),
    [
        (300.0, 100.0, (), Bound.DATA),
        (300.0, 100.0, OVERHEAD, Bound.DATA),
        (100.0, 300.0, (), Bound.COMPUTE),
        (100.0, 300.0, PLENTY, Bound.COMPUTE),
        (100.0, 300.0, OVERHEAD, Bound.OVERHEAD),
        (100.0, 110.0, OVERHEAD, Bound.BALANCED),
        (110.0, 100.0, (), Bound.BALANCED),
    ],
)
def test_the_slower_half_of_the_loop_is_the_bottleneck(compute, load, searched, bound):
    found = diagnose(CONFIG, [run(compute, load)], searched)
    assert found.bound is bound
    assert found.compute_units_per_s == pytest.approx(compute)
    assert found.load_units_per_s == pytest.approx(load)
    assert found.units_per_s == pytest.approx(100.0)


def test_what_free_data_would_bring_is_bounded_by_the_step():
    assert diagnose(CONFIG, [run(250.0, 120.0)], ()).ceiling == pytest.approx(2.5)
    # Probes vary too: nothing gets slower by zero-cost data.
    assert diagnose(CONFIG, [run(90.0, 300.0)], ()).ceiling == 1.0


def test_the_share_of_a_step_that_any_batch_costs_is_found():
    found = diagnose(CONFIG, [run(100.0, 300.0)], OVERHEAD)
    assert found.overhead_share == pytest.approx(10 / 18, rel=0.01)
    assert diagnose(CONFIG, [run(100.0, 300.0)], PLENTY).overhead_share < 0.05


def test_only_trials_that_differ_in_batch_size_alone_tell_the_overhead():
    others = [
        search(8, 0.018),
        search(2, 0.5, num_workers=2),
        search(2, 0.5, num_threads=1),
    ]
    assert diagnose(CONFIG, [run(100.0, 300.0)], others).overhead_share is None


def test_cores_that_are_busy_throughout_are_told():
    idle = diagnose(CONFIG, [run(100.0, 300.0, cpu_s=1.0)], ())
    busy = diagnose(CONFIG, [run(100.0, 300.0, cpu_s=1.9)], ())
    assert (idle.is_saturated, busy.is_saturated) == (False, True)
    assert "the cores are busy throughout" in str(busy)
    assert "the cores are busy" not in str(idle)


def test_without_probes_there_is_no_diagnosis():
    assert diagnose(CONFIG, [run(), run()], OVERHEAD) is None
    assert diagnose(CONFIG, [], ()) is None


def test_runs_that_were_not_probed_are_left_out_and_the_others_averaged():
    runs = [run(), run(100.0, 400.0), run(400.0, 400.0)]
    found = diagnose(CONFIG, runs, ())
    assert found.compute_units_per_s == pytest.approx(200.0)


def test_a_diagnosis_is_one_line_with_the_script_s_own_unit():
    text = str(diagnose(CONFIG, [run(300.0, 100.0, unit="tokens")], OVERHEAD))
    assert text.startswith("data-bound: the step alone reaches 300, the loader alone 100, both ")
    assert "together 100 tokens/s; with zero-cost data loading: up to 3.00x" in text
    assert "; 56 % of a step is fixed overhead" in text
    assert "\n" not in text
