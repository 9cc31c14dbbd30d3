"""Each process opens the data file at its first sample, which takes half a second.

Follows: the way HDF5 files are opened in workers (pytorch/pytorch#11929).
Right: opening is start-up, not part of a step; workers help with the reads that wait.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Rows(Dataset):
    def __init__(self, path):
        self.path, self.rows = path, None

    def __len__(self):
        return 1500

    def __getitem__(self, i):
        if self.rows is None:
            time.sleep(0.5)
            self.rows = np.load(self.path, mmap_mode="r")
        time.sleep(0.002)
        return torch.from_numpy(np.array(self.rows[i])), i % 4


def main():
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="rows-") as directory:
        path = Path(directory, "rows.npy")
        np.save(path, np.random.default_rng(0).normal(size=(1500, 64)).astype(np.float32))
        model = torch.nn.Linear(64, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        default = autotune.ThroughputConfig(batch_size=10)
        config = autotune.load_config("best_config.yaml", default=default)
        loader = config.dataloader(Rows(path), shuffle=True)
        for _ in range(EPOCHS):
            for x, y in autotune.steps(loader):
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


if __name__ == "__main__":
    main()
