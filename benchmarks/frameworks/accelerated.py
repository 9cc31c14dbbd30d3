"""Accelerate on a step that computes."""

import os
import time

import torch
from accelerate import Accelerator
from data import Sentences, make_model
from torch import nn

import autotune

if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = autotune.load_config(
        "best_config.yaml",
        default=autotune.ThroughputConfig(batch_size=8),
        effective_batch_size=64,
    )
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    loader = config.dataloader(Sentences(), shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    batches = autotune.steps(loader)
    for epoch in range(int(os.environ.get("EPOCHS", 3))):
        begin = time.time()
        num_steps = 0
        for words, labels in batches:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(words), labels))
                optimizer.step()
                optimizer.zero_grad()
            num_steps += 1
        print(f"epoch {epoch}: {time.time() - begin:.3f} s, {num_steps} steps", flush=True)
