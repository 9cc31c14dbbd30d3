"""The diagnosis of loops of which it is known what holds them back, by whole runs."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import QUICK
from .runs import autotune_run

# All that it does is sleep: a fixed time and one for each sample, which threads share.
LOOP = """
import time
import torch
import autotune

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 100000
    def __getitem__(self, index):
        time.sleep({item_s})
        return torch.zeros(1)

def main():
    default = autotune.ThroughputConfig(batch_size=4, num_threads=1)
    config = autotune.load_config("best_config.yaml", default=default)
    for batch in autotune.steps(config.dataloader(Data())):
        time.sleep({fixed_s} + {sample_s} * len(batch) / torch.get_num_threads())

if __name__ == "__main__":
    main()
"""
AXES = {"batch_size": [2, 4, 8], "num_workers": [0, 1, 2], "num_threads": [1, 2]}


@pytest.fixture
def diagnose(tmp_path, monkeypatch):
    """Tunes a loop with these times; gives severities by setting, and the result."""
    monkeypatch.chdir(tmp_path)

    def run(**times_s):
        Path("train.py").write_text(LOOP.format(**times_s))
        data = QUICK | {"sampler": "auto", "axes": AXES, "command": [sys.executable, "train.py"]}
        Path("planted.yaml").write_text(yaml.safe_dump(data))
        done = autotune_run("--study", "planted.yaml", "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        severities = {e["change"]["setting"]: e["severity"] for e in result["effects"]}
        return severities, result, done.stderr

    return run


def test_of_a_loop_that_waits_for_its_data_the_workers_are_critical(diagnose):
    severities, result, said = diagnose(item_s=0.004, fixed_s=0.001, sample_s=0.0005)
    assert severities["num_workers"] == "critical"
    assert result["effects"][0]["change"]["setting"] == "num_workers"
    assert result["baseline_bottleneck"]["bound"] == "data-bound"
    assert result["best"]["config"]["num_workers"] == 2
    assert "what held training back" in said
    assert "what is left is no setting" in said


def test_of_a_loop_that_computes_threads_are_critical_and_workers_useless(diagnose):
    severities, result, _ = diagnose(item_s=0.0, fixed_s=0.004, sample_s=0.006)
    assert severities["num_threads"] == "critical"
    assert severities["batch_size"] in ("critical", "medium")
    assert severities["num_workers"] == "none"
    assert result["best"]["config"]["num_workers"] == 0


def test_of_a_loop_whose_steps_cost_the_same_whatever_is_in_them_the_batch_is_critical(diagnose):
    severities, result, _ = diagnose(item_s=0.0, fixed_s=0.02, sample_s=0.0)
    assert severities["batch_size"] == "critical"
    assert severities["num_threads"] == severities["num_workers"] == "none"
    assert result["baseline_bottleneck"]["bound"] == "overhead-bound"
