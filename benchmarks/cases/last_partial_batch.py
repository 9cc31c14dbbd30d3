"""An epoch of 150 samples in batches of 64: the last of three batches holds 22.

Follows: DataLoader's default, drop_last=False, on small data.
Right: an epoch holds 150 samples and an update takes 50 on average.
"""

import time

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 4


class Small(Dataset):
    def __len__(self):
        return 150

    def __getitem__(self, i):
        time.sleep(0.001)
        return torch.full((16,), float(i)), i % 4


def main():
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    default = autotune.ThroughputConfig(batch_size=64)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Small(), shuffle=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
