"""An IterableDataset that shuffles and augments at random, and does not shard itself.

Follows: unsharded_iterable.py, with what makes it harder to see: no two workers deliver the same
values, since each shuffles and augments with a seed of its own.
Right: an epoch holds 1,000 samples. Workers repeat the data, so they are ruled out.
"""

import random
import time

import torch
from torch.utils.data import IterableDataset

import autotune

EPOCHS = 2


class Images(IterableDataset):
    def __iter__(self):
        order = list(range(1000))
        random.shuffle(order)
        for i in order:
            time.sleep(0.002)
            generator = torch.Generator().manual_seed(i)
            image = torch.randn(32, generator=generator)
            yield image + 0.1 * torch.randn(32), torch.tensor(i % 4)


def main():
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=10)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Images())
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
