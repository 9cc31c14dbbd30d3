"""DDP under torchrun: `torchrun --nproc-per-node 2 ddp.py`."""

import data
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

import autotune


def train():
    torch.manual_seed(0)
    model = DistributedDataParallel(data.make_model())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    config = autotune.load_config(
        "best_config.yaml",
        default=autotune.ThroughputConfig(batch_size=8),
        effective_batch_size=data.EFFECTIVE_BATCH,
    )
    sentences = data.Sentences()
    sampler = DistributedSampler(sentences)
    loader = config.dataloader(sentences, sampler=sampler, drop_last=True)
    accumulation = config.gradient_accumulation_steps
    clock = data.Clock(torch.distributed.get_rank(), accumulation)
    batches = autotune.steps(loader)
    for _ in range(10**6):
        for number, batch in enumerate(batches, start=1):
            loss = data.loss_of(model, batch)
            (loss / accumulation).backward()
            if number % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
            clock.step(loss)
        if not clock.epoch():
            return


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    train()
    torch.distributed.destroy_process_group()
