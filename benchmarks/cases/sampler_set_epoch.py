"""A sampler of the user's own, told of each epoch through the loader that `steps` gives.

Follows: `loader.sampler.set_epoch(epoch)` of scripts for one process and for several.
Right: it is tuned; an epoch holds the 2,000 even samples.
"""

import random

import torch
from torch.utils.data import Sampler, TensorDataset

import autotune

EPOCHS = 3


class EvenOnly(Sampler):
    def __init__(self, num_samples):
        self.num_samples, self.epoch = num_samples, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.num_samples // 2

    def __iter__(self):
        order = list(range(0, self.num_samples, 2))
        random.Random(self.epoch).shuffle(order)
        return iter(order)


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4000, 32), torch.randint(0, 4, (4000,)))
    model = torch.nn.Linear(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = autotune.steps(config.dataloader(data, sampler=EvenOnly(len(data))))
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
