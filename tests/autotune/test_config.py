import dataclasses
import subprocess
import sys

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler, TensorDataset

import autotune
from autotune import ConfigError, ThroughputConfig


def test_settings_are_completed_as_the_dataloader_would():
    config = ThroughputConfig(batch_size=4, num_workers=2)
    assert (config.prefetch_factor, config.persistent_workers) == (2, True)
    assert config.num_prefetched == 4
    assert ThroughputConfig(batch_size=4).persistent_workers is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"num_workers": None}, "num_workers"),
        ({"num_threads": 0}, "num_threads must be a whole number of at least 1 or null"),
        ({"prefetch_factor": 2}, "prefetch_factor must be null when num_workers is 0"),
        ({"num_workers": 1, "prefetch_factor": 0}, "prefetch_factor"),
        ({"persistent_workers": True}, "persistent_workers must be false"),
        ({"pin_memory": 1}, "pin_memory must be true or false"),
        ({"pin_memory": None}, "pin_memory"),
        ({"in_order": False}, "in_order must be true when num_workers is 0, not false"),
        ({"num_workers": 1, "in_order": 0}, "in_order must be true or false, not 0"),
        (
            {"multiprocessing_context": "spawn"},
            'multiprocessing_context must be "default" when num_workers is 0, not "spawn"',
        ),
        (
            {"num_workers": 1, "multiprocessing_context": "thread"},
            "multiprocessing_context must be one of default, fork, forkserver, spawn, not 'thread'",
        ),
        ({"cudnn_benchmark": None}, "cudnn_benchmark must be true or false, not None"),
        (
            {"matmul_precision": "low"},
            "matmul_precision must be one of default, highest, high, medium, not 'low'",
        ),
    ],
)
def test_a_broken_rule_names_setting_rule_and_value(settings, message):
    with pytest.raises(ConfigError, match=message):
        ThroughputConfig(**{"batch_size": 1, **settings})


def test_all_ranks_together_make_up_the_effective_batch():
    two = ThroughputConfig(batch_size=4, num_ranks=2).with_effective_batch_size(32)
    assert two.gradient_accumulation_steps == 4
    assert two.effective_batch_size == 32
    with pytest.raises(ConfigError, match=r"batch_size x ranks must .* \(33\), and 4 x 2 does not"):
        two.with_effective_batch_size(33)


def test_accumulation_makes_up_the_effective_batch():
    config = ThroughputConfig(batch_size=4).with_effective_batch_size(32)
    assert config.gradient_accumulation_steps == 8
    assert config.effective_batch_size == 32
    with pytest.raises(ConfigError, match="must divide effective_batch_size"):
        ThroughputConfig(batch_size=5).with_effective_batch_size(32)
    with pytest.raises(ConfigError, match="must divide"):
        ThroughputConfig(batch_size=64).with_effective_batch_size(32)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_gets_every_setting(num_workers):
    config = ThroughputConfig(batch_size=3, num_workers=num_workers)
    loader = config.dataloader(TensorDataset(torch.arange(7)), drop_last=True)
    assert [len(batch) for (batch,) in loader] == [3, 3]
    assert loader.num_workers == num_workers
    assert loader.prefetch_factor == config.prefetch_factor
    assert loader.persistent_workers == config.persistent_workers


def test_the_loader_refuses_what_the_settings_decide():
    with pytest.raises(ConfigError, match="batch_size is decided"):
        ThroughputConfig(batch_size=3).dataloader(TensorDataset(torch.arange(7)), batch_size=2)


def test_a_batch_sampler_replaces_the_batch_size():
    sampler = BatchSampler(SequentialSampler(range(7)), batch_size=5, drop_last=False)
    config = ThroughputConfig(batch_size=3)
    loader = config.dataloader(TensorDataset(torch.arange(7)), batch_sampler=sampler)
    assert [len(batch) for (batch,) in loader] == [5, 2]
    # The other arguments that it excludes are torch's to refuse.
    with pytest.raises(ValueError, match="batch_sampler option is mutually exclusive"):
        config.dataloader(TensorDataset(torch.arange(7)), batch_sampler=sampler, shuffle=True)
    loader = config.dataloader(TensorDataset(torch.arange(7)), batch_sampler=None)
    assert loader.batch_size == 3


def test_a_dataset_that_gives_batches_itself_is_not_batched_again():
    config = ThroughputConfig(batch_size=3, num_workers=1)
    loader = config.dataloader(TensorDataset(torch.arange(8).view(2, 4)), batch_size=None)
    assert [len(batch) for (batch,) in loader] == [4, 4]


def test_a_sampler_of_the_users_decides_the_order():
    config = ThroughputConfig(batch_size=3)
    loader = config.dataloader(TensorDataset(torch.arange(7)), sampler=[6, 0, 3])
    assert [batch.tolist() for (batch,) in loader] == [[6, 0, 3]]


@pytest.mark.parametrize("name", ["num_workers", "pin_memory", "batch_size"])
def test_no_other_argument_overrides_the_settings(name):
    sampler = BatchSampler(SequentialSampler(range(7)), batch_size=5, drop_last=False)
    data = TensorDataset(torch.arange(7))
    with pytest.raises(ConfigError, match=f"{name} is decided by the configuration: leave it out"):
        ThroughputConfig(batch_size=3).dataloader(data, **{name: 2})
    if name != "batch_size":
        with pytest.raises(ConfigError, match=f"{name} is decided"):
            ThroughputConfig(batch_size=3).dataloader(data, batch_sampler=sampler, **{name: 2})


def test_threads_are_set_and_none_leaves_them():
    before = torch.get_num_threads()
    try:
        ThroughputConfig(batch_size=1, num_threads=1).apply_to_process()
        assert torch.get_num_threads() == 1
        ThroughputConfig(batch_size=1).apply_to_process()
        assert torch.get_num_threads() == 1
    finally:
        ThroughputConfig(batch_size=1, num_threads=before).apply_to_process()


def test_settings_survive_a_round_trip_as_plain_values():
    config = ThroughputConfig(batch_size=4, num_workers=2, num_threads=3)
    assert ThroughputConfig(**config.to_dict()) == config
    assert config.summary == "batch 4, workers 2 (prefetch 2), threads 3"
    all_else = {"in_order": False, "multiprocessing_context": "spawn", "cudnn_benchmark": True}
    config = dataclasses.replace(config, **all_else, matmul_precision="high")
    assert ThroughputConfig(**config.to_dict()) == config
    assert config.summary == (
        "batch 4, workers 2 (prefetch 2, spawn, any order), threads 3, cuDNN benchmark, matmul high"
    )
    config = dataclasses.replace(config, in_order=True, multiprocessing_context="default")
    assert (
        dataclasses.replace(
            config, num_workers=0, prefetch_factor=None, persistent_workers=None
        ).num_prefetched
        == 0
    )


def test_the_public_names_are_there():
    assert all(hasattr(autotune, name) for name in autotune.__all__)


def test_torch_that_is_imported_later_finds_its_threads():
    code = """
import sys
from autotune.config import ThroughputConfig
ThroughputConfig(batch_size=1, num_threads=1).apply_to_process()
assert "torch" not in sys.modules
import torch
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
