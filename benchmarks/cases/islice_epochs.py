"""Epochs of 25 steps each: a function is called per epoch and takes a slice of the loader.

Follows: steps_per_epoch of timm and of GAN trainers.
Right: it is tuned; the slice may end and the function be called again.
"""

import itertools

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 8


def train_one_epoch(model, loader, optimizer):
    for x, y in itertools.islice(autotune.steps(loader), 25):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4000, 64), torch.randint(0, 4, (4000,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    for epoch in range(EPOCHS):
        print(epoch, train_one_epoch(model, loader, optimizer))
    torch.save(model.state_dict(), "last.pt")


if __name__ == "__main__":
    main()
