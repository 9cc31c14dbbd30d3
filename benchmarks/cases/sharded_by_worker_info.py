"""An IterableDataset that shards itself with `get_worker_info`, one waiting read per sample.

Follows: the documentation of IterableDataset, first example.
Right: workers are kept and help; an epoch holds 1,200 samples with them as without.
"""

import time

import torch
from torch.utils.data import IterableDataset, get_worker_info

import autotune

EPOCHS = 2


class Lines(IterableDataset):
    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for i in range(first, 1200, step):
            time.sleep(0.002)
            generator = torch.Generator().manual_seed(i)
            yield torch.randn(32, generator=generator), i % 4


def main():
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=8)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Lines())
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
