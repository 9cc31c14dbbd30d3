"""What is searched beyond the values that an axis has at first."""

import dataclasses

import pytest

from autotune.blocks import LoopFacts
from autotune.config import ThroughputConfig
from autotune.space import Space
from autotune.study.definition import AxisSet, SamplerName, StudyDefinition
from autotune.trials.runner import Introduction
from autotune.tuning.plan import Plan, estimate, make_plan, widen, with_fitting_axes

from .. import made_up

BASELINE = ThroughputConfig(batch_size=4)
AXES = {"batch_size": (4, 8), "num_workers": (0, 2), "prefetch_factor": (2, 4)}


def plan_of(*, axes=AXES, effective_batch_size=None):
    space = Space(axes=axes, effective_batch_size=effective_batch_size)
    return Plan(baseline=BASELINE, space=space, configurations=space.configurations(BASELINE))


def widened(config, rate, *, plan=None, axes=None, rules_out=lambda _: False):
    """The axes after widening, where `rate` gives the throughput of each configuration."""
    plan = plan or plan_of()
    definition = StudyDefinition(name="x", command=("x",), axes=axes or {})
    rates = {c: rate(c) for c in plan.configurations}
    found = widen(plan, definition, config, rates, rules_out)
    return None if found is None else dict(found.space.axes)


def config(batch_size, num_workers=0, prefetch_factor=None):
    return ThroughputConfig(
        batch_size=batch_size, num_workers=num_workers, prefetch_factor=prefetch_factor
    )


def test_an_axis_is_doubled_where_its_last_value_is_better_than_the_one_before():
    found = widened(config(8), lambda c: c.batch_size)
    assert found == {**AXES, "batch_size": (4, 8, 16)}


def test_an_axis_whose_last_value_brings_next_to_nothing_is_left_alone():
    assert widened(config(8), lambda c: 100 + (c.batch_size == 8)) is None
    assert widened(config(4), lambda c: 1.0) is None


def test_several_axes_may_be_widened_at_once():
    found = widened(
        config(8, 2, 4), lambda c: c.batch_size * (1 + c.num_workers) * (c.prefetch_factor or 1)
    )
    assert found == {
        "batch_size": (4, 8, 16),
        "num_workers": (0, 2, 4),
        "prefetch_factor": (2, 4, 8),
    }


def test_what_the_user_named_and_what_the_effective_batch_fixes_stays():
    assert widened(config(8), lambda c: c.batch_size, axes={"batch_size": (4, 8)}) is None
    fixed = plan_of(effective_batch_size=8)
    chosen = dataclasses.replace(config(8), gradient_accumulation_steps=1)
    assert widened(chosen, lambda c: c.batch_size, plan=fixed) is None


@pytest.mark.parametrize("axes", [{"batch_size": (8,)}, {"num_workers": (0, 2)}])
def test_an_axis_of_one_value_is_no_axis(axes):
    plan = plan_of(axes=axes)
    assert widened(plan.configurations[0], lambda c: 1.0, plan=plan) is None


def test_an_axis_ends_at_the_samples_of_an_epoch_and_at_what_failures_ruled_out():
    small = dataclasses.replace(plan_of(), num_samples=15)
    assert widened(config(8), lambda c: c.batch_size, plan=small) is None
    enough = dataclasses.replace(plan_of(), num_samples=16)
    assert widened(config(8), lambda c: c.batch_size, plan=enough)
    ruled_out = widened(config(8), lambda c: c.batch_size, rules_out=lambda c: c.batch_size >= 16)
    assert ruled_out is None


def planned(
    facts=None,
    default=BASELINE,
    effective_batch_size=None,
    versions=None,
    axis_set=AxisSet.DEFAULT,
    **axes,
):
    """The plan for a command with these settings of its own, whose loop says so."""
    introduction = Introduction(
        pid=1,
        rank=0,
        world_size=1,
        default=default,
        effective_batch_size=effective_batch_size,
        config_path=None,
        default_num_threads=2,
        fork_obstacle=None,
        versions=versions or {},
    )
    definition = StudyDefinition(name="x", command=("x",), axes=axes, axis_set=axis_set)
    return make_plan(definition, introduction, facts)


def test_batch_sizes_beyond_an_epoch_are_left_out_in_one_line():
    everything = planned()
    assert everything.space.axes["batch_size"] == (2, 4, 8, 16, 32, 64)
    plan = planned(LoopFacts(samples_per_epoch=20))
    assert plan.space.axes["batch_size"] == (2, 4, 8, 16)
    assert plan.notes == ("batch_size 32, 64 is left out: an epoch has 20 samples",)
    assert {c.batch_size for c in plan.configurations} == {2, 4, 8, 16}
    assert planned(LoopFacts(samples_per_epoch=64)).notes == everything.notes == ()


def test_the_batch_size_of_the_baseline_stays_even_if_an_epoch_is_smaller():
    plan = planned(LoopFacts(samples_per_epoch=3))
    assert plan.space.axes["batch_size"] == (2, 4)
    named = planned(LoopFacts(samples_per_epoch=3), batch_size=(16, 32))
    assert named.space.axes["batch_size"] == (4,)


def test_what_the_loop_fixes_stays_as_it_is_and_the_reason_is_told():
    facts = LoopFacts(
        samples_per_epoch=20, fixed={"batch_size": "the loader has a batch_sampler of its own"}
    )
    plan = planned(facts)
    assert plan.space.axes["batch_size"] == (4,)
    assert {c.batch_size for c in plan.configurations} == {4}
    assert plan.notes == ("batch_size stays at 4: the loader has a batch_sampler of its own",)


def test_an_axis_that_the_user_named_and_the_loop_fixes_is_told():
    plan = planned(LoopFacts(fixed={"num_workers": "so it is"}), num_workers=(0, 2))
    assert plan.space.axes["num_workers"] == (0,)
    assert plan.notes == (
        "num_workers stays at 0, although the study names other values: so it is",
    )


def test_a_setting_that_is_fixed_at_its_default_or_is_no_axis_does_no_harm():
    fixed = {"prefetch_factor": "so it is", "pin_memory": "no GPU"}
    plan = planned(LoopFacts(fixed=fixed))
    assert plan.notes == ("prefetch_factor stays at its default: so it is",)
    assert {c.prefetch_factor for c in plan.configurations} == {None, 2}
    all_fixed = dict.fromkeys(planned().space.axes, "so it is")
    [only] = planned(LoopFacts(fixed=all_fixed)).configurations
    assert only == planned().baseline


NEW = {"versions": {"torch": "2.13.0+cpu"}}
EXTENDED = ("in_order", "cudnn_benchmark", "multiprocessing_context")


def test_extended_axes_are_searched_where_they_are_asked_for():
    assert not set(EXTENDED) & set(planned(**NEW).space.axes)
    plan = planned(axis_set=AxisSet.EXTENDED, **NEW)
    assert set(EXTENDED) <= set(plan.space.axes)
    assert "matmul_precision" not in plan.space.axes
    named = planned(in_order=(False,), **NEW)
    assert named.space.axes["in_order"] == (False,)
    assert {c.in_order for c in named.configurations if c.num_workers} == {False}


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        (
            {"versions": {"torch": "2.5.1"}},
            ("in_order is left out: it needs torch 2.6 or later, and the script uses 2.5.1",),
        ),
        (
            {"num_workers": (0,), **NEW},
            (
                "in_order is left out: no loader workers are tried",
                "multiprocessing_context is left out: no loader workers are tried",
            ),
        ),
        (
            {"facts": LoopFacts(fixed={"in_order": "so it is"}), **NEW},
            ("in_order stays at True: so it is",),
        ),
    ],
)
def test_an_extended_axis_that_cannot_matter_is_left_out_with_a_note(changes, notes):
    assert planned(axis_set=AxisSet.EXTENDED, **changes).notes == notes


def test_without_torch_there_is_no_extended_axis():
    plan = planned(axis_set=AxisSet.EXTENDED)
    assert plan.space.axes == planned().space.axes
    assert plan.notes[0].endswith("the script had not loaded it at load_config")
    assert len(plan.notes) == len(EXTENDED)


def fitted(sample, **axes):
    # The number of cores here is not to decide of the size of the space.
    axes = {"num_workers": (0, 1, 2), "num_threads": (1, 2), **axes}
    plan = planned(axis_set=AxisSet.EXTENDED, **NEW, **axes)
    definition = StudyDefinition(name="x", command=("x",), axes=axes)
    return with_fitting_axes(plan, definition, [sample])


def test_what_needs_a_gpu_is_searched_where_the_baseline_used_one():
    without = made_up.sample(IDLE)
    plan = fitted(without)
    assert "cudnn_benchmark" not in plan.space.axes
    assert plan.notes == ("cudnn_benchmark is left out: the baseline used no GPU",)
    with_gpu = dataclasses.replace(without, devices=(made_up.device(),))
    assert fitted(with_gpu).space.axes["cudnn_benchmark"] == (False, True)
    assert fitted(with_gpu).notes == ()
    assert "cudnn_benchmark" in fitted(without, cudnn_benchmark=(True,)).space.axes


def test_extended_axes_that_make_the_space_too_large_are_left_out():
    sizes = tuple(range(1, 129))
    plan = fitted(made_up.sample(IDLE), batch_size=sizes)
    assert len(plan.configurations) == 128 * 2 * (1 + 2 * 2 * 2)
    assert "in_order" in plan.space.axes
    assert plan.notes[-1].startswith("multiprocessing_context is left out: with it there would be")


def searched(*blocks, baseline=BASELINE, axes=None):
    """The axes that are left after a baseline with these blocks."""
    words = {"gc": ("default", "frozen"), "malloc": ("default", "kept")}
    space = Space(axes={"batch_size": (4, 8), **words})
    plan = Plan(baseline=baseline, space=space, configurations=space.configurations(baseline))
    definition = StudyDefinition(name="x", command=("x",), axes=axes or {})
    found = with_fitting_axes(plan, definition, [made_up.sample(*blocks)])
    assert found.configurations == found.space.configurations(baseline)
    return found.space.axes


# Loading takes 1 and 20 % of the time.
IDLE = made_up.block(duration_s=1.0, cpu_s=1.0, own_cpu_s=1.0, wait_cpu_s=0.01)
BUSY = made_up.block(duration_s=1.0, cpu_s=1.0, own_cpu_s=1.0, wait_cpu_s=0.2)


def test_the_collector_is_not_searched_where_loading_takes_no_cpu_time():
    assert "gc" not in searched(IDLE)
    assert "gc" in searched(BUSY)
    # It waits, but no core is busy with that.
    assert "gc" not in searched(dataclasses.replace(IDLE, wait_s=0.9))


def test_with_workers_their_cpu_time_counts_and_not_that_of_the_training_process():
    baseline = ThroughputConfig(batch_size=4, num_workers=2)
    of_workers = dataclasses.replace(IDLE, cpu_s=1.5)
    assert "gc" in searched(of_workers, baseline=baseline)
    assert "gc" not in searched(BUSY, baseline=baseline)


def test_the_allocator_is_searched_where_memory_is_taken_anew_all_the_time():
    wasteful = dataclasses.replace(IDLE, num_page_faults=30_000)
    assert "malloc" not in searched(IDLE)
    assert searched(wasteful)["malloc"] == ("default", "kept")
    assert "malloc" in searched(IDLE, axes={"malloc": ("default", "kept")})
    assert "gc" not in searched(wasteful)


def test_disturbed_blocks_do_not_decide_about_the_collector():
    assert "gc" not in searched(IDLE, dataclasses.replace(BUSY, stolen_s=0.9))


def test_a_collector_that_the_user_named_is_searched_whatever_loading_takes():
    axes = {"gc": ("default", "frozen")}
    assert searched(IDLE, axes=axes)["gc"] == ("default", "frozen")


@pytest.mark.parametrize("sampler", [SamplerName.AUTO, SamplerName.GRID])
def test_what_a_run_takes_is_reckoned_from_the_baseline_and_bounded_by_the_budget(sampler):
    def expected(**changes):
        definition = StudyDefinition(name="x", command=("x",), sampler=sampler, **changes)
        baseline = made_up.record(made_up.block(), config=BASELINE).measurement
        plan = planned(batch_size=(4, 8), num_workers=(0, 2), gc=("default",))
        return estimate(definition, plan, baseline, start_up_s=3.0, forks=True)

    found = expected(budget_s=3600.0)
    # A baseline, and three rounds of two: seven starts of 3 s at least.
    assert 21.0 < found.low_s < found.high_s < 3600.0
    assert expected(budget_s=30.0).high_s == 30.0
    assert expected(budget_s=3600.0, confirm_rounds=6).low_s > found.low_s + 18.0
