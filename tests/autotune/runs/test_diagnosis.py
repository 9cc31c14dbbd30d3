"""The diagnosis of a loop of which it is known what holds it back, by a whole run.

`benchmarks/planted.py` has more of these.
"""

import json
import sys
from pathlib import Path

import pytest
import yaml

from ..commands import autotune_run
from ..conftest import QUICK

pytestmark = pytest.mark.alone

LOOP = """
import time
import torch
import autotune

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 100000
    def __getitem__(self, index):
        time.sleep(0.004)
        return torch.zeros(1)

if __name__ == "__main__":
    default = autotune.ThroughputConfig(batch_size=4, num_threads=1)
    config = autotune.load_config("best_config.yaml", default=default)
    for batch in autotune.steps(config.dataloader(Data())):
        time.sleep(0.001)
"""
AXES = {"batch_size": [4, 8], "num_workers": [0, 2], "prefetch_factor": [2], "num_threads": [1]}


def test_of_a_loop_that_waits_for_its_data_the_workers_are_critical(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(LOOP)
    study = QUICK | {"sampler": "auto", "axes": AXES, "command": [sys.executable, "train.py"]}
    Path("planted.yaml").write_text(yaml.safe_dump(study))
    done = autotune_run("--study", "planted.yaml", "--json")
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
    assert "critical │ num_workers" in autotune_run(command="show").stdout
