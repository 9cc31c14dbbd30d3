"""Large batches raise inside the loop, inside `with TemporaryDirectory()`.

Follows: temporary_directory_batchnorm.py, with a context manager: the exception of a forked trial
passes through it.
Right: batches above 100 are ruled out, the data stay for all other trials, nothing is left.
"""

import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Files(Dataset):
    def __init__(self, directory):
        self.directory = Path(directory)
        for i in range(500):
            torch.save(torch.full((64,), i / 500), self.directory / f"{i}.pt")

    def __len__(self):
        return 500

    def __getitem__(self, i):
        return torch.load(self.directory / f"{i}.pt"), i % 4


def main():
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="unpacked-") as directory:
        data = Files(directory)
        model = torch.nn.Linear(64, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        default = autotune.ThroughputConfig(batch_size=10)
        config = autotune.load_config("best_config.yaml", default=default)
        loader = config.dataloader(data, shuffle=True)
        for _ in range(EPOCHS):
            for x, y in autotune.steps(loader):
                if len(x) > 100:
                    raise RuntimeError("the table of positions holds 100 entries")
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


if __name__ == "__main__":
    main()
