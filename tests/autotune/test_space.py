import pytest

from autotune.axes import AXES
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.space import Space, default_axes, extended_axes, preference

BASELINE = ThroughputConfig(batch_size=2, num_threads=2)


def test_every_legal_combination_is_there_once():
    axes = {"num_workers": (0, 1, 2), "prefetch_factor": (2, 4), "num_threads": (1, 2)}
    configs = Space(axes=axes).configurations(BASELINE)
    assert len(configs) == len(set(configs)) == (1 + 2 * 2) * 2
    assert all(config.prefetch_factor is None for config in configs if config.num_workers == 0)
    assert all(config.batch_size == 2 for config in configs)


def test_what_needs_workers_is_combined_with_these_alone():
    axes = {
        "num_workers": (0, 1),
        "in_order": (False, True),
        "multiprocessing_context": ("default", "spawn"),
    }
    space = Space(axes=axes)
    configs = space.configurations(BASELINE)
    assert len(configs) == 1 + 4
    assert {(c.in_order, c.multiprocessing_context) for c in configs if not c.num_workers} == {
        (True, "default")
    }
    changed = space.changed(configs[-1], num_workers=0)
    assert changed == BASELINE
    # That they follow from there being no workers is no change of theirs.
    spawned = space.changed(BASELINE, num_workers=1, multiprocessing_context="spawn")
    assert preference(BASELINE, spawned)[0] == 1
    assert preference(spawned, BASELINE)[0] == 2


def test_extended_axes_hold_the_baselines_own_values():
    assert list(extended_axes(BASELINE)) == [a.name for a in AXES.values() if a.is_extended]
    own = {"num_workers": 1, "in_order": False, "multiprocessing_context": "spawn"}
    baseline = ThroughputConfig(batch_size=2, cudnn_benchmark=True, **own)
    assert baseline in Space(axes=extended_axes(baseline)).configurations(baseline)
    assert "default" not in extended_axes(baseline)["multiprocessing_context"]


def test_order_and_repeats_of_values_do_not_matter():
    assert Space(axes={"num_threads": (2, 1, 2)}) == Space(axes={"num_threads": (1, 2)})


def test_words_are_ordered_as_the_setting_lists_them():
    axes = Space(axes={"gc": ("raised", "frozen", "default", "frozen")}).axes
    assert axes == {"gc": ("default", "frozen", "raised")}


def test_the_effective_batch_is_kept_by_all():
    space = Space(axes={"batch_size": (1, 2, 8)}, effective_batch_size=8)
    assert {config.effective_batch_size for config in space.configurations(BASELINE)} == {8}
    with pytest.raises(BadInputError, match="axis batch_size: must hold divisors of .* 8 .* 3"):
        Space(axes={"batch_size": (1, 3)}, effective_batch_size=8)


def test_ranks_on_a_machine_share_its_threads_and_the_effective_batch():
    axes = {"ranks_per_node": (1, 2), "num_threads": (1, 2, 4), "batch_size": (2, 8)}
    space = Space(axes=axes, effective_batch_size=8)
    configs = space.configurations(ThroughputConfig(batch_size=2, num_threads=4))
    assert {config.effective_batch_size for config in configs} == {8}
    two = [config for config in configs if config.ranks_per_node == 2]
    # Four threads of each are more than there are cores, and two batches of eight too many samples.
    assert {(config.batch_size, config.num_threads) for config in two} == {(2, 1), (2, 2)}
    assert {config.num_ranks for config in two} == {2}
    halved = space.changed(configs[-1], batch_size=2, ranks_per_node=2)
    assert (configs[-1].num_threads, halved.num_threads) == (4, 2)


def test_an_axis_that_is_missing_stays_as_in_the_baseline():
    baseline = ThroughputConfig(batch_size=2, num_workers=3, prefetch_factor=5)
    (config,) = Space(axes={"batch_size": (7,)}).configurations(baseline)
    assert (config.batch_size, config.num_workers) == (7, 3)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"batchsize": (1,)}, "axis batchsize: unknown"),
        ({"batch_size": ()}, "needs at least one value"),
        ({"batch_size": (0,)}, "axis batch_size: batch_size must be"),
        ({"num_threads": (None,)}, "axis num_threads"),
        ({"prefetch_factor": (0,)}, "axis prefetch_factor"),
        ({"pin_memory": (1,)}, "axis pin_memory"),
        ({"gc": ("default", "off")}, "axis gc: gc must be one of default, frozen, raised"),
        ({"in_order": ("no",)}, "axis in_order: in_order must be true or false"),
        ({"multiprocessing_context": ("thread",)}, "multiprocessing_context must be one of"),
        ({"gc": (1,)}, "axis gc: gc must be one of"),
        ({"batch_size": ("8",)}, "axis batch_size: batch_size must be a whole number"),
    ],
)
def test_a_bad_axis_is_named(axes, message):
    with pytest.raises(BadInputError, match=message):
        Space(axes=axes)


@pytest.mark.parametrize("usable_cores", [1, 2, 4, 6, 64])
def test_default_axes_fit_the_machine(usable_cores):
    axes = default_axes(usable_cores=usable_cores, baseline=BASELINE, effective_batch_size=None)
    assert max(axes["num_threads"]) == usable_cores
    assert max(axes["num_workers"]) <= max(2 * usable_cores, 1)
    assert 0 in axes["num_workers"]
    assert BASELINE.batch_size in axes["batch_size"]
    assert Space(axes=axes).configurations(BASELINE)


@pytest.mark.parametrize("effective", [1, 7, 32, 720])
def test_default_batch_sizes_divide_the_effective_batch(effective):
    baseline = ThroughputConfig(batch_size=1)
    assert "num_threads" not in default_axes(
        usable_cores=2, baseline=baseline, effective_batch_size=None
    )
    axes = default_axes(usable_cores=2, baseline=baseline, effective_batch_size=effective)
    assert all(effective % size == 0 for size in axes["batch_size"])
    assert {1, effective} <= set(axes["batch_size"])
    assert len(axes["batch_size"]) <= 9


@pytest.mark.parametrize(
    ("collector", "values"),
    [
        ("default", ("default", "frozen")),
        ("frozen", ("default", "frozen")),
        ("raised", ("default", "frozen", "raised")),
    ],
)
def test_the_collector_is_searched_with_the_scripts_own(collector, values):
    baseline = ThroughputConfig(batch_size=2, gc=collector)
    axes = default_axes(usable_cores=2, baseline=baseline, effective_batch_size=None)
    assert Space(axes=axes).axes["gc"] == values
    assert baseline in Space(axes=axes).configurations(baseline)
