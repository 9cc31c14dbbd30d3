"""Batches are lists of point clouds, each with a length of its own.

Follows: `collate_fn=list` and `lambda batch: tuple(zip(*batch))` of detection tutorials.
Right: a batch counts as its clouds, not as the points of the first; an epoch holds 1,500.
"""

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Clouds(Dataset):
    def __len__(self):
        return 1500

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return torch.randn(3 + i % 20, 8, generator=generator)


def main():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=4)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Clouds(), shuffle=True, collate_fn=list)
    for _ in range(EPOCHS):
        for clouds in autotune.steps(loader):
            loss = torch.stack([model(cloud).mean() for cloud in clouds]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
