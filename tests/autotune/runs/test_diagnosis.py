"""The diagnosis of a loop of which it is known what holds it back, by a whole run.

`benchmarks/planted.py` has more of these.
"""

import json

import pytest

from ..commands import autotune_here, autotune_run

pytestmark = pytest.mark.alone

# 4 ms a sample, or 1 ms with two workers; a step takes 4 ms, so that larger batches help a little.
LOOP = {
    "item": "time.sleep(0.004 * self.batch_size / max(1, 2 * self.num_workers))",
    "step": "time.sleep(0.004)",
    "length": 100000,
}
AXES = {"batch_size": [4, 8], "num_workers": [0, 2], "gc": ["default"]}


def test_of_a_loop_that_waits_for_its_data_the_workers_are_critical(study):
    options = study(script=LOOP, axes=AXES, sampler="auto", max_trials=2)
    done = autotune_run(*options, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    first = result["effects"][0]
    assert first["change"]["setting"] == "num_workers"
    assert first["severity"] == "critical"
    assert first["alone"]["low"] > 1.3
    assert result["baseline_bottleneck"]["bound"] == "data-bound"
    assert result["best"]["config"]["num_workers"] == 2
    assert "what limited training" in done.stderr
    assert "the remaining bottleneck is not one of the tuned settings" in done.stderr
    # The same from the storage alone.
    assert "critical │ num_workers" in autotune_here(command="show").stdout
