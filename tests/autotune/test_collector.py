"""The garbage collector of trials."""

import json

import pytest

from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode

FIRST_STEPS = BlockRequest(min_s=0.0, settle_s=0.001)
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
