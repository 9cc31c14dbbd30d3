"""The order of batches, the start of workers and torch's switches as settings."""

import json
import multiprocessing
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from autotune.best_config import read_best_config
from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.errors import ConfigError
from autotune.instrument.loader_facts import describe_loader
from autotune.measurement import StartMode
from autotune.torch_flags import set_otherwise

from .commands import autotune_run, trials
from .conftest import QUICK, processes_of, wait_until

FIRST_STEPS = BlockRequest(min_s=0.0, settle_s=0.001)
PRINT_STATE = """
if not taken:
    import json
    method = loader.multiprocessing_context and loader.multiprocessing_context.get_start_method()
    precision = torch.get_float32_matmul_precision()
    benchmark = torch.backends.cudnn.benchmark
    print("state", json.dumps([loader.in_order, method, precision, benchmark]), flush=True)
time.sleep(0.001)
"""


def state_in(output):
    return json.loads(output.partition("state ")[2].splitlines()[0])


class Late(Dataset):
    """The first sample is ready only when somebody opens the gate; each tells of its process."""

    def __init__(self, gate):
        self.gate = gate

    def __len__(self):
        return 6

    def __getitem__(self, index):
        while index == 0 and not self.gate.exists():
            time.sleep(0.001)
        return index, type(multiprocessing.current_process()).__name__


@pytest.mark.parametrize(
    ("method", "process"), [("fork", "ForkProcess"), ("forkserver", "ForkServerProcess")]
)
def test_a_ready_batch_overtakes_a_late_one_in_workers_that_are_started_as_is_set(
    tmp_path, method, process
):
    gate = tmp_path / "gate"
    config = ThroughputConfig(
        batch_size=1, num_workers=2, in_order=False, multiprocessing_context=method
    )
    batches = iter(config.dataloader(Late(gate), timeout=60))
    found = [next(batches)]
    gate.touch()
    found += batches
    numbers = [int(index) for index, _ in found]
    assert numbers[0] != 0
    assert sorted(numbers) == list(range(6))
    assert {name for _, [name] in found} == {process}
    in_order = ThroughputConfig(batch_size=1, num_workers=2).dataloader(Late(gate))
    assert [int(index) for index, _ in in_order] == list(range(6))


def test_a_torch_that_does_not_know_the_order_is_told_of(monkeypatch):
    class Older:
        def __init__(self, dataset, batch_size, num_workers):
            """As before torch 2.6."""

    monkeypatch.setattr(torch.utils.data, "DataLoader", Older)
    assert "in_order" not in ThroughputConfig(batch_size=1, num_workers=1).dataloader_kwargs()
    config = ThroughputConfig(batch_size=1, num_workers=1, in_order=False)
    with pytest.raises(ConfigError, match=r"in_order must be true with torch .* torch 2\.6 and"):
        config.dataloader_kwargs()


@pytest.fixture
def switches():
    """The switches of torch in this process, which are set back afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_switches_of_torch_are_set_and_by_default_left_as_the_script_has_them(switches):
    ThroughputConfig(
        batch_size=1, matmul_precision="medium", cudnn_benchmark=True
    ).apply_to_process()
    assert switches() == ("medium", True)
    ThroughputConfig(batch_size=1).apply_to_process()
    assert switches() == ("medium", True)
    assert not torch.cuda.is_initialized()


def test_what_the_script_sets_by_itself_is_told(switches):
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    assert set_otherwise(matmul_precision="high", cudnn_benchmark=True) == {}
    assert set_otherwise(matmul_precision="default", cudnn_benchmark=False) == {
        "cudnn_benchmark": "the script sets torch.backends.cudnn.benchmark = True"
    }
    assert set_otherwise(matmul_precision="highest", cudnn_benchmark=True) == {
        "matmul_precision": "the script sets the precision high"
    }


def test_a_loader_that_the_script_made_otherwise_keeps_its_values():
    loader = DataLoader(
        Late(Path()), 2, num_workers=1, in_order=False, multiprocessing_context="spawn"
    )
    config = ThroughputConfig(batch_size=2, num_workers=1)
    assert describe_loader(loader, config).fixed == {
        "in_order": "the loader was made with in_order=False",
        "multiprocessing_context": "the loader was made with multiprocessing_context=spawn",
    }
    own = {"in_order": False, "multiprocessing_context": "spawn"}
    config = ThroughputConfig(batch_size=2, num_workers=1, **own)
    assert describe_loader(loader, config).fixed == {}


@pytest.mark.parametrize(
    ("mode", "method"), [(StartMode.FORK, "forkserver"), (StartMode.FRESH, "fork")]
)
def test_the_settings_arrive_in_a_trial(script, start_runner, tmp_path, mode, method):
    runner = start_runner(script(step=PRINT_STATE))
    config = ThroughputConfig(
        batch_size=4,
        num_workers=1,
        in_order=False,
        multiprocessing_context=method,
        matmul_precision="high",
        cudnn_benchmark=True,
    )
    with runner.start(config, mode) as trial:
        assert trial.mode is mode
        assert trial.facts.fixed == {}
        trial.measure(FIRST_STEPS, deadline_s=60)
        assert state_in(trial._origin.output.read_text()) == [False, method, "high", True]
    runner.close()
    assert wait_until(lambda: not processes_of(tmp_path))


def test_a_run_searches_the_extended_axes_and_training_gets_what_it_found(script):
    command = script(step=PRINT_STATE, length=64, item="pass")
    axes = {"batch_size": [4], "num_workers": [1], "prefetch_factor": [2], "num_threads": [1]}
    data = {**QUICK, "command": list(command), "axes": {**axes, "gc": ["default"]}}
    Path("quick.yaml").write_text(yaml.safe_dump({**data, "num_candidates": 1}))
    done = autotune_run("--study", "quick.yaml", "--axes", "extended")
    assert done.returncode == 0, done.stderr
    assert "cudnn_benchmark is left out: the baseline used no GPU" in done.stdout
    frame = trials()
    with_workers = frame[(frame["num_workers"] > 0) & (frame["state"] == "complete")]
    assert set(with_workers["in_order"]) == {True, False}
    assert len(set(with_workers["multiprocessing_context"])) == 2
    assert set(frame["matmul_precision"]) == {"default"}

    chosen = read_best_config(Path("best_config.yaml")).config
    trained = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    in_order, method, _, benchmark = state_in(trained)
    assert (in_order, method or "default") == (chosen.in_order, chosen.multiprocessing_context)
    assert not benchmark
