"""A loop with Accelerate is tuned by the two calls, its prepared loader seen through."""

import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader

import autotune
from autotune import ThroughputConfig
from autotune.blocks import BlockMode, BlockRequest
from autotune.instrument import torch_loader
from autotune.instrument.batch_source import BatchSource
from autotune.instrument.loader_facts import describe_loader
from autotune.measurement import StartMode

from ..conftest import wait_until
from .conftest import tree, write_settings
from .frameworks import write_script

CONFIG = ThroughputConfig(batch_size=4, gradient_accumulation_steps=4)
SAMPLES = [(torch.full((3,), index / 40), torch.tensor([index % 3.0])) for index in range(40)]
SCRIPT = """
import autotune
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return (Texts()[index] for index in range(LENGTH))

def main():
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration({loading}))
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    default = autotune.ThroughputConfig(batch_size=4)
    config = autotune.load_config("best_config.yaml", default=default, effective_batch_size=16)
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    loader = config.dataloader({data})
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(2):
        for batch in autotune.steps(loader):
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
    accelerator.save_state("out")

if __name__ == "__main__":
    main()
"""


def ask(trial, mode):
    return trial.measure(BlockRequest(mode=mode, min_s=0.05), deadline_s=30).blocks[0]


def test_a_script_is_forked_and_its_accumulation_counted(start_runner):
    script = write_script(SCRIPT.format(loading="", data="Texts(), shuffle=True"))
    before = tree()
    runner = start_runner((sys.executable, str(script)))
    with runner.start(CONFIG, StartMode.FORK) as trial:
        # Two windows of two optimizer steps each, however slow the machine is.
        settling = BlockRequest(min_s=0.0, multiple_of=8, settle_s=20.0)
        assert trial.measure(settling, deadline_s=30).settling.steps_per_update == 4
        assert ask(trial, BlockMode.COMPUTE).num_samples
        assert ask(trial, BlockMode.LOAD).num_samples
        assert trial.facts.steps_per_epoch == 24
    assert trial.mode is StartMode.FORK
    assert tree() == before


@pytest.mark.parametrize(
    ("loading", "data", "is_lockstep"),
    [
        ("use_seedable_sampler=False", "Texts(), shuffle=True", False),
        ("split_batches=True", "Stream()", True),
    ],
)
def test_ranks_that_wait_for_each_other_in_the_loader_are_measured(
    start_runner, loading, data, is_lockstep
):
    script = write_script(SCRIPT.format(loading=loading, data=data))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    runner = start_runner((sys.executable, *launcher, str(script)))
    with runner.start_default() as trial:
        settling = BlockRequest(min_s=0.05, settle_s=0.1, multiple_of=4)
        block = trial.measure(settling, deadline_s=30).blocks[0]
        # With split batches each rank has its share.
        assert block.num_samples / block.num_updates == (8 if is_lockstep else 16)
        assert trial.facts.lockstep is is_lockstep
        if is_lockstep:
            assert "dispatch_batches" in trial.facts.notes[0]
        else:
            assert ask(trial, BlockMode.COMPUTE).num_samples
            assert ask(trial, BlockMode.LOAD).num_samples
        assert ask(trial, BlockMode.TRAIN).num_samples


def test_batches_that_workers_have_ready_are_seen_through_a_prepared_loader():
    torch_loader.install()
    source = BatchSource(Accelerator(cpu=True).prepare(DataLoader(SAMPLES, 4, num_workers=1)))
    source.take()
    assert wait_until(lambda: source.num_ready() == 2)
    assert source.discard_ready() == 2
    assert source.drain() == 0


@pytest.mark.parametrize("loading", [{}, {"split_batches": True}, {"dispatch_batches": True}])
def test_a_prepared_loader_follows_its_settings(loading):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**loading))
    facts = describe_loader(accelerator.prepare(DataLoader(SAMPLES, 4)), CONFIG)
    assert facts.fixed == {}
    assert facts.steps_per_epoch == 10


def test_a_tuned_loop_learns_the_same():
    def losses():
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        default = ThroughputConfig(batch_size=2)
        config = autotune.load_config("best_config.yaml", default=default, effective_batch_size=8)
        accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
        loader = config.dataloader(SAMPLES, shuffle=True)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        found = []
        for inputs, targets in autotune.steps(loader):
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
        size = config.gradient_accumulation_steps
        return [sum(found[i : i + size]) / size for i in range(0, len(found), size)]

    plain = losses()
    write_settings(batch_size=4)
    assert losses() == pytest.approx(plain, rel=1e-4)
