"""Decoded samples are cached in a temporary directory, which forked trials and workers share.

Follows: torchdata's on_disk_cache, monai's PersistentDataset.
Right: what is stated holds for the epochs after the first, and the change is mentioned. The
directory outlives every trial, and is removed with the script.
"""

import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 6


class OnDisk(Dataset):
    def __init__(self, directory, num_samples):
        self.directory, self.num_samples = Path(directory), num_samples

    def __len__(self):
        return self.num_samples

    def __getitem__(self, i):
        path = self.directory / f"{i}.pt"
        if not path.exists():
            time.sleep(0.004)
            partial = path.with_suffix(f".{time.monotonic_ns()}")
            torch.save(torch.full((64,), float(i)), partial)
            partial.rename(path)
        return torch.load(path), i % 4


def main():
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="decoded-") as directory:
        data = OnDisk(directory, 500)
        model = torch.nn.Linear(64, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        default = autotune.ThroughputConfig(batch_size=20)
        config = autotune.load_config("best_config.yaml", default=default)
        loader = config.dataloader(data, shuffle=True)
        for _ in range(EPOCHS):
            for x, y in autotune.steps(loader):
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


if __name__ == "__main__":
    main()
