"""DDP whose ranks torch.multiprocessing starts: `python spawned.py`."""

import os

import torch
from ddp import train


def work(rank):
    os.environ["RANK"] = str(rank)
    torch.distributed.init_process_group(
        "gloo", init_method="tcp://127.0.0.1:29533", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    train()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, nprocs=2)
