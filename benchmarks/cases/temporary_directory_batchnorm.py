"""Data in a TemporaryDirectory, and BatchNorm, which raises for a batch of one.

Follows: pytorch/pytorch#4534, matplotlib#16677, apache/airflow#22404, sagemath/sage#39201.
Right: a batch of one is ruled out, everything else is measured. A failed trial that was forked does
not remove the directory, and the run leaves none.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 1


class Files(Dataset):
    def __init__(self, directory, n):
        self.directory, self.n = Path(directory), n
        for i in range(n):
            values = np.random.default_rng(i).normal(size=500).astype(np.float32)
            np.save(self.directory / f"{i}.npy", values)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.from_numpy(np.load(self.directory / f"{i}.npy")), i % 4


def main():
    torch.manual_seed(0)
    scratch = tempfile.TemporaryDirectory(prefix="unpacked-")
    data = Files(scratch.name, 1000)
    layers = [torch.nn.Linear(500, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=8)
    config = autotune.load_config("best_config.yaml", default=default, effective_batch_size=8)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(autotune.steps(loader)):
            loss = (
                torch.nn.functional.cross_entropy(model(x), y) / config.gradient_accumulation_steps
            )
            loss.backward()
            if (i + 1) % config.gradient_accumulation_steps == 0:
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    main()
