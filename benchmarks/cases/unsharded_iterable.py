"""An IterableDataset that does not shard itself: each worker reads all of it.

Follows: huggingface/datasets#3423, vahidk/tfrecord#78.
Right: an epoch holds 3,000 samples. Workers repeat the data, so they are ruled out, and the output
says why and that `get_worker_info` shards it.
"""

import time

import torch
from torch.utils.data import IterableDataset

import autotune

EPOCHS = 2


class Lines(IterableDataset):
    """Parses lines of a log file; parsing takes 2 ms a line (waits on a slow disk)."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        for i in range(self.n):
            time.sleep(0.002)
            g = torch.Generator().manual_seed(i)
            yield torch.randn(64, generator=g), torch.tensor(i % 10)


def main():
    torch.manual_seed(0)
    data = Lines(3000)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data)
    for epoch in range(EPOCHS):
        n = 0
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            n += len(x)
        print(f"epoch {epoch}: {n} samples, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
