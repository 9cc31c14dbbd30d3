"""90 samples and drop_last: a batch of 128 would leave an epoch without a single step.

Follows: quick runs on a subset; few-shot data.
Right: batch sizes are bounded by the data; no trial fails for want of a batch.
"""

import time

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 4


class Few(Dataset):
    def __len__(self):
        return 90

    def __getitem__(self, i):
        time.sleep(0.001)
        return torch.full((32,), i / 90), i % 3


def main():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters())
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Few(), shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
