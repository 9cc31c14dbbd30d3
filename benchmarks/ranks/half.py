"""One half of what ddp.py does, by itself: `torchrun --nproc-per-node 2 half.py step|loader`."""

import sys
import time

import data
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(data.make_model())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    sentences = data.Sentences()
    loader = DataLoader(sentences, 8, sampler=DistributedSampler(sentences), drop_last=True)
    num_ranks = torch.distributed.get_world_size()
    held = [batch for batch, _ in zip(loader, range(4))]
    accumulation = data.EFFECTIVE_BATCH // (8 * num_ranks)
    number = 0
    begun_s = None
    while begun_s is None or time.monotonic() - begun_s < 3:
        for batch in held if sys.argv[1] == "step" else loader:
            number += 1
            if sys.argv[1] == "step":
                (data.loss_of(model, batch) / accumulation).backward()
                if number % accumulation == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        if begun_s is None and number >= 32:
            begun_s, number = time.monotonic(), 0
        # All ranks must take as many.
        left = torch.tensor([0.0 if begun_s is None else time.monotonic() - begun_s])
        torch.distributed.all_reduce(left, torch.distributed.ReduceOp.MAX)
        if left >= 3:
            break
    seconds = time.monotonic() - begun_s
    if torch.distributed.get_rank() == 0:
        print(num_ranks * 8 * number / seconds)
