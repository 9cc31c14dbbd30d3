"""Evaluation runs before the first epoch, and one `run_epoch` serves both loops.

Follows: Lightning-AI/pytorch-lightning#16488 ("Tuner starts from validation"), #18834,
CompVis/taming-transformers#92.
Right: the loop whose optimizer takes a step is the one that is measured.
"""

import numpy as np
import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Images(Dataset):
    def __init__(self, n, augment):
        self.n, self.augment = n, augment

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        x = np.random.default_rng(i).normal(size=(64, 64)).astype(np.float32)
        for _ in range(20 if self.augment else 0):
            x = np.tanh(np.roll(x, 1, 0) + x)
        return torch.from_numpy(x).flatten(), i % 4


def run_epoch(model, loader, optimizer=None):
    torch.set_grad_enabled(optimizer is not None)
    total = 0.0
    for x, y in autotune.steps(loader):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        if optimizer:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total += loss.item()
    return total / len(loader)


def main():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4096, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    train, val = (
        config.dataloader(Images(2000, True), shuffle=True),
        config.dataloader(Images(200, False)),
    )
    print("before training:", run_epoch(model, val))
    for _ in range(EPOCHS):
        print("train", run_epoch(model, train, optimizer), "val", run_epoch(model, val))


if __name__ == "__main__":
    main()
