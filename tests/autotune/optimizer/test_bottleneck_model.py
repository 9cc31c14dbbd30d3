"""What the bottleneck model makes of the costs that a few trials showed."""

import dataclasses
import math

import numpy as np
import pytest

from autotune.config import ThroughputConfig
from autotune.optimizer.bottleneck_model import BottleneckModel, Costs


def costs(config, *, fixed_s=0.0, sample_s=0.0, parallel_s=0.0, load_s=0.0, load_cpu_s=None):
    """Of a loop whose unit is the sample and whose costs follow the law exactly."""
    step_s = fixed_s / config.batch_size + sample_s + parallel_s / config.num_threads
    return Costs(
        config=config,
        step_s=step_s,
        load_s=load_s,
        load_cpu_s=load_s if load_cpu_s is None else load_cpu_s,
    )


def make(batch_size, num_threads=1, **settings):
    return ThroughputConfig(batch_size=batch_size, num_threads=num_threads, **settings)


SEEN = [make(batch, threads) for batch in (4, 16, 64) for threads in (1, 2)]


def seconds(law, *configs):
    return law.seconds_per_unit(configs).tolist()


def test_costs_of_other_batch_sizes_and_threads_follow():
    truth = {"fixed_s": 0.02, "sample_s": 0.001, "parallel_s": 0.004, "load_s": 0.003}
    law = BottleneckModel([costs(config, **truth) for config in SEEN], usable_cores=2)
    for config in (make(8, 1), make(32, 2), make(256, 1)):
        expected = costs(config, **truth)
        [found] = seconds(law, config)
        assert found == pytest.approx(expected.step_s + expected.load_s, rel=0.02)


def test_no_coefficient_is_negative_even_where_the_first_trial_is_all_there_is():
    law = BottleneckModel([costs(make(4), sample_s=0.01)], usable_cores=2)
    found = np.array(seconds(law, *(make(2**n, 2) for n in range(12))))
    assert (found > 0).all()
    assert (np.diff(found) <= 0).all()


def test_workers_hide_loading_up_to_what_the_cores_can_do():
    truth = {"sample_s": 0.004, "load_s": 0.008}
    law = BottleneckModel([costs(config, **truth) for config in SEEN], usable_cores=16)
    one, two, eight = seconds(law, *(make(16, num_workers=n) for n in (1, 2, 8)))
    assert one == pytest.approx(0.008, rel=0.05)
    assert 0.004 < two < 0.006
    assert eight == pytest.approx(0.004, rel=0.05)
    few_cores = BottleneckModel([costs(config, **truth) for config in SEEN], usable_cores=2)
    # 12 ms of CPU per sample on two cores.
    [bound] = seconds(few_cores, make(16, num_workers=8))
    assert bound == pytest.approx(0.006, rel=0.06)


def test_loading_that_sleeps_needs_no_core():
    truth = {"sample_s": 0.001, "load_s": 0.1, "load_cpu_s": 0.0}
    law = BottleneckModel([costs(config, **truth) for config in SEEN], usable_cores=2)
    [found] = seconds(law, make(16, num_workers=50))
    assert found == pytest.approx(0.002, rel=0.05)


def test_collectors_are_not_mixed():
    plain = {"sample_s": 0.002, "load_s": 0.006}
    frozen = {"sample_s": 0.001, "load_s": 0.003}
    seen = [costs(config, **plain) for config in SEEN]
    seen += [costs(make(c.batch_size, c.num_threads, gc="frozen"), **frozen) for c in SEEN]
    law = BottleneckModel(seen, usable_cores=16)
    found = seconds(law, make(32), make(32, gc="frozen"), make(32, gc="raised"))
    # Nothing ran with "raised": it is taken to cost what the first trials show.
    assert found == pytest.approx([0.008, 0.004, 0.008], rel=0.02)
    found = seconds(law, *(make(32, num_workers=1, gc=name) for name in ("default", "frozen")))
    assert found == pytest.approx([0.006, 0.003], rel=0.02)


def test_words_without_trials_cost_what_those_do_that_are_most_alike():
    seen = [costs(config, sample_s=0.002, load_s=0.006) for config in SEEN]
    for words, figures in (
        ({"gc": "frozen"}, {"sample_s": 0.002, "load_s": 0.003}),
        ({"malloc": "kept"}, {"sample_s": 0.001, "load_s": 0.006}),
    ):
        seen += [costs(make(c.batch_size, c.num_threads, **words), **figures) for c in SEEN]
    law = BottleneckModel(seen, usable_cores=16)
    [both] = seconds(law, make(32, gc="frozen", malloc="kept"))
    assert both == pytest.approx(0.005, rel=0.02)


def test_one_trial_with_another_collector_scales_what_the_others_tell():
    plain = {"fixed_s": 0.02, "sample_s": 0.001, "parallel_s": 0.004, "load_s": 0.006}
    seen = [costs(config, **plain) for config in SEEN]
    seen.append(
        dataclasses.replace(costs(make(16), **plain), config=make(16, gc="frozen"), load_s=0.003)
    )
    law = BottleneckModel(seen, usable_cores=2)
    expected = costs(make(256, 2), **plain)
    [found] = seconds(law, make(256, 2, gc="frozen"))
    assert found == pytest.approx(expected.step_s + 0.003, rel=0.03)
    default, frozen = law.gain([make(16), make(16, gc="frozen")])
    assert default > 1.5 * frozen


def test_workers_can_gain_what_loading_takes():
    law = BottleneckModel(
        [costs(config, sample_s=0.002, load_s=0.001) for config in SEEN], usable_cores=2
    )
    assert law.gain([make(8, 2)]) == pytest.approx([math.log(1.5)], rel=0.05)


@pytest.mark.parametrize(
    ("device_share", "expected_s"), [(1.0, 0.010), (0.5, 0.0053), (0.0, 0.000625)]
)
def test_what_a_device_leaves_to_the_host_is_shared_by_larger_batches(device_share, expected_s):
    seen = dataclasses.replace(costs(make(64, 1), sample_s=0.01), device_share=device_share)
    model = BottleneckModel([seen], usable_cores=16)
    for threads in (1, 8):
        assert seconds(model, make(1024, threads)) == pytest.approx([expected_s], rel=0.05)
