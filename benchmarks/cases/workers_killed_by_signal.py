"""Loader workers die by a signal at their first sample, as after a fault in a native library.

Follows: "DataLoader worker (pid …) is killed by signal: Segmentation fault".
Right: workers are ruled out with that reason after a few failures; the rest is tuned.
"""

import os
import signal

import torch
from torch.utils.data import Dataset, get_worker_info

import autotune

EPOCHS = 2


class Native(Dataset):
    def __len__(self):
        return 3000

    def __getitem__(self, i):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.randn(64, generator=torch.Generator().manual_seed(i)), i % 4


def main():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Native(), shuffle=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
