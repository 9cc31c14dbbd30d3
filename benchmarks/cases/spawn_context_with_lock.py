"""The loader's own context is spawn, and the dataset holds an open file and a lock.

Follows: "TypeError: cannot pickle '_thread.lock' object" of loggers and clients in datasets.
Right: workers are ruled out with that reason; the rest is tuned.
"""

import tempfile
import threading

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Logged(Dataset):
    def __init__(self):
        self.lock = threading.Lock()
        self.log = tempfile.TemporaryFile("w")  # noqa: SIM115

    def __len__(self):
        return 3000

    def __getitem__(self, i):
        with self.lock:
            self.log.write(f"{i}\n")
        return torch.randn(64, generator=torch.Generator().manual_seed(i)), i % 4


def main():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    context = "spawn" if config.num_workers else None
    loader = config.dataloader(Logged(), shuffle=True, multiprocessing_context=context)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
