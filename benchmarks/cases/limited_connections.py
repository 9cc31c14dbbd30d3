"""The server accepts two connections: with three workers or more, all of them raise.

Follows: data bases and licence servers with a limit.
Right: three workers and more are ruled out in one line; two workers, which help, are kept.
"""

import time

import torch
from torch.utils.data import Dataset, get_worker_info

import autotune

EPOCHS = 2


class Server(Dataset):
    def __len__(self):
        return 1500

    def __getitem__(self, i):
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 2:
            raise ConnectionError("too many connections")
        time.sleep(0.002)
        return torch.full((32,), i / 1500), i % 4


def main():
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=8)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Server(), shuffle=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
