"""An IterableDataset that batches by itself, as webdataset's `.batched()` does.

Follows: webdataset's `WebLoader(dataset, batch_size=None)`. It splits its shards among the workers.
Right: workers help and are kept; the batch size, which the dataset has, is not tuned.
"""

import time

import torch
from torch.utils.data import IterableDataset, get_worker_info

import autotune

EPOCHS = 2
SHARDS, BATCHES_PER_SHARD, BATCH = 16, 6, 20


class Shards(IterableDataset):
    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for shard in range(first, SHARDS, step):
            generator = torch.Generator().manual_seed(shard)
            for _ in range(BATCHES_PER_SHARD):
                time.sleep(0.02)
                x = torch.randn(BATCH, 32, generator=generator)
                yield x, (x.sum(1) > 0).long()


def main():
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=BATCH)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Shards(), batch_size=None)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
