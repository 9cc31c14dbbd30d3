"""The garbage collector as a setting: in the training process, in loader workers, and in trials."""

import gc
import json
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from autotune.blocks import BlockRequest
from autotune.collector import RAISED_THRESHOLDS
from autotune.config import ThroughputConfig
from autotune.errors import ConfigError
from autotune.measurement import StartMode

FIRST_STEPS = BlockRequest(min_s=0.0, settle_s=0.001)
START_METHODS = ["fork", "spawn", "forkserver"]
# What the script's own code has done to its collector before it calls load_config.
SCRIPTS = {
    "as Python leaves it": "pass",
    "thresholds of its own": "import gc; gc.set_threshold(900, 7, 5)",
    "disabled": "import gc; gc.disable()",
    "a frozen heap": "import gc; gc.collect(); gc.freeze()",
}
PRINT_STATE = (
    "import gc, json\n"
    "print(json.dumps([gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()]), flush=True)"
)


def state_of(runner, mode, **settings):
    """Of a trial's collector: enabled, thresholds, and how many objects are frozen."""
    with runner.start(ThroughputConfig(batch_size=4, **settings), mode) as trial:
        assert trial.mode is mode
        trial.measure(FIRST_STEPS, deadline_s=60)
        output = trial._origin.output.read_text()
    return json.loads(output.splitlines()[0])


@pytest.mark.parametrize("before", SCRIPTS.values(), ids=SCRIPTS)
def test_a_forked_trial_has_the_collector_of_a_fresh_process(light_script, start_runner, before):
    runner = start_runner(light_script(before=before, step=PRINT_STATE))
    fresh = state_of(runner, StartMode.FRESH)
    forked = state_of(runner, StartMode.FORK)
    assert forked[:2] == fresh[:2]
    # Whatever else is alive by then differs by a few objects.
    assert forked[2] == pytest.approx(fresh[2], rel=0.01)
    assert (fresh[2] > 0) == ("freeze" in before)


@pytest.mark.parametrize("mode", [StartMode.FORK, StartMode.FRESH])
def test_a_trial_has_the_collector_of_its_configuration(light_script, start_runner, mode):
    runner = start_runner(light_script(step=PRINT_STATE))
    _, thresholds, num_frozen = state_of(runner, mode, gc="frozen")
    assert thresholds == list(gc.get_threshold())
    assert num_frozen > 1000
    _, thresholds, num_frozen = state_of(runner, mode, gc="raised")
    assert thresholds == list(RAISED_THRESHOLDS)
    assert num_frozen == 0


@pytest.mark.parametrize(
    ("collector", "thresholds", "is_frozen"),
    [
        ("default", (777, 8, 9), False),
        ("frozen", (777, 8, 9), True),
        ("raised", RAISED_THRESHOLDS, False),
    ],
)
def test_load_config_sets_up_the_collector(collector, thresholds, is_frozen):
    code = (
        "import gc, json, autotune\n"
        "gc.set_threshold(777, 8, 9)\n"
        f"default = autotune.ThroughputConfig(batch_size=1, gc={collector!r})\n"
        "autotune.load_config(None, default=default)\n"
        "print(json.dumps([gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, list(thresholds), is_frozen]


class CollectorState(Dataset):
    """Each sample is the state of the collector where it is loaded."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([gc.get_freeze_count(), *gc.get_threshold()])


def use_thresholds_of_its_own(worker_id):
    gc.set_threshold(600 + worker_id, 5, 5)


def state_in_workers(loader):
    """How many objects are frozen, and the thresholds, in the first worker."""
    num_frozen, *thresholds = next(iter(loader))[0].tolist()
    return num_frozen, tuple(thresholds)


@pytest.mark.parametrize("start_method", START_METHODS)
def test_workers_get_the_collector_however_they_are_started(start_method):
    def load(collector, **kwargs):
        config = ThroughputConfig(batch_size=2, num_workers=1, gc=collector)
        loader = config.dataloader(CollectorState(), multiprocessing_context=start_method, **kwargs)
        return state_in_workers(loader)

    num_frozen, thresholds = load("frozen")
    assert num_frozen > 1000
    assert thresholds == gc.get_threshold()
    assert load("raised") == (0, RAISED_THRESHOLDS)
    # A function of the user's runs as well.
    num_frozen, thresholds = load("frozen", worker_init_fn=use_thresholds_of_its_own)
    assert num_frozen > 1000
    assert thresholds == (600, 5, 5)


def test_the_default_collector_leaves_the_loader_alone():
    config = ThroughputConfig(batch_size=2, num_workers=1)
    assert "worker_init_fn" not in config.dataloader_kwargs()
    assert state_in_workers(config.dataloader(CollectorState())) == (0, gc.get_threshold())
    own = config.dataloader(CollectorState(), worker_init_fn=use_thresholds_of_its_own)
    assert own.worker_init_fn is use_thresholds_of_its_own


def test_the_arguments_for_a_dataloader_combine_a_function_of_the_users():
    config = ThroughputConfig(batch_size=2, num_workers=1, gc="frozen")
    kwargs = config.dataloader_kwargs(worker_init_fn=use_thresholds_of_its_own)
    num_frozen, thresholds = state_in_workers(DataLoader(CollectorState(), **kwargs))
    assert num_frozen > 1000
    assert thresholds == (600, 5, 5)


def test_without_workers_the_loader_has_nothing_to_set_up():
    config = ThroughputConfig(batch_size=2, gc="frozen")
    assert "worker_init_fn" not in config.dataloader_kwargs()


@pytest.mark.parametrize("value", ["off", "", None, 1, True, ["frozen"]])
def test_another_collector_is_refused(value):
    with pytest.raises(ConfigError, match="gc must be one of default, frozen, raised, not"):
        ThroughputConfig(batch_size=1, gc=value)


def test_the_summary_names_a_collector_that_is_not_the_default():
    assert "gc" not in ThroughputConfig(batch_size=1).summary
    assert ThroughputConfig(batch_size=1, gc="frozen").summary.endswith(", gc frozen")
