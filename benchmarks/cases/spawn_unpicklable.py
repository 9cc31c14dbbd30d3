"""Start method spawn, and a dataset with a lambda and a lock: workers cannot be started.

Follows: pytorch/pytorch#51836, #22585, catalyst#1024, HazyResearch/cartridges#20.
Right: after a few equal failures workers are ruled out in one line with the reason; what was
measured without workers is confirmed.
"""

import threading

import numpy as np
import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 1


class Images(Dataset):
    def __init__(self, transform):
        self.transform, self.lock, self.cache = transform, threading.Lock(), {}

    def __len__(self):
        return 2000

    def __getitem__(self, i):
        x = np.random.default_rng(i).normal(size=(3, 32, 32)).astype(np.float32)
        with self.lock:
            self.cache[i % 16] = i
        return self.transform(torch.from_numpy(x)), i % 4


def main():
    torch.manual_seed(0)
    torch.multiprocessing.set_start_method("spawn")
    mean = torch.zeros(3, 1, 1)
    data = Images(lambda x: (x - mean).flip(-1))
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(4)]
    model = torch.nn.Sequential(*layers)
    model(torch.zeros(1, 3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
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
