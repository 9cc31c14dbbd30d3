"""Accelerate: `accelerate launch --num_processes 2 accelerated.py`, or torchrun."""

import data
import torch
from accelerate import Accelerator

import autotune

if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = data.Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    config = autotune.load_config(
        "best_config.yaml",
        default=autotune.ThroughputConfig(batch_size=8),
        effective_batch_size=data.EFFECTIVE_BATCH,
    )
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    loader = config.dataloader(data.Sentences(), drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    clock = data.Clock(accelerator.process_index, config.gradient_accumulation_steps)
    batches = autotune.steps(loader)
    while True:
        for batch in batches:
            with accelerator.accumulate(model):
                loss = data.loss_of(model, batch)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            clock.step(loss)
        if not clock.epoch():
            break
