"""A map-style dataset whose items are whole batches of 50: `batch_size=None`.

Follows: datasets cut into batches when they were written (HDF5 chunks, Parquet row groups).
Right: `config.dataloader(batch_size=None)` is accepted, the batch size is not tuned, and the output
says so. An update takes 50 samples.
"""

import time

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Chunks(Dataset):
    def __len__(self):
        return 80

    def __getitem__(self, i):
        time.sleep(0.02)
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(50, 32, generator=generator)
        return x, (x.sum(1) > 0).long()


def main():
    torch.manual_seed(0)
    data = Chunks()
    model = torch.nn.Linear(32, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=50)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, batch_size=None, shuffle=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
