"""Train the model of `language_model.py`, a smaller one, on several ranks: DDP under torchrun."""

from __future__ import annotations

import os

import torch
from language_model import LanguageModel, Texts, tokens
from loop_options import Stopwatch, choose_device, parse_options
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

import autotune

EFFECTIVE_BATCH = 64


def main() -> None:
    """Train."""
    options = parse_options(__doc__)
    torch.manual_seed(0)
    device = choose_device(options)
    torch.distributed.init_process_group(options.backend)
    rank = torch.distributed.get_rank()
    if rank:
        # The first rank says when to begin, and when it is over.
        options.wait, options.seconds = False, None
    width, num_layers, length = (64, 1, 64) if options.small else (384, 6, 256)
    dataset = Texts(length)
    model = LanguageModel(width, num_layers, length)
    default = autotune.ThroughputConfig(**{"batch_size": 4} | options.settings)
    config = autotune.load_config(
        "best_config.yaml", default=default, effective_batch_size=EFFECTIVE_BATCH
    )
    watch = Stopwatch(options, device, config.num_workers, config.prefetch_factor)
    # All of them on one GPU where there is one only.
    ddp = DistributedDataParallel(model.to(device))
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=3e-4)
    sampler = DistributedSampler(dataset, drop_last=True)
    loader = config.dataloader(dataset, sampler=sampler, drop_last=True)
    accumulation = config.gradient_accumulation_steps
    for _ in range(options.epochs):
        for number, batch in enumerate(autotune.steps(loader, units=tokens), start=1):
            ids = batch.to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                logits = ddp(ids[:, :-1])
                loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            (loss / accumulation).backward()
            if number % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if watch.is_over(len(batch) * torch.distributed.get_world_size()):
                # The others end with their next collective.
                os._exit(0)


if __name__ == "__main__":
    main()
