"""A loader that Accelerate prepared, which reads one batch ahead.

Follows: huggingface/accelerate#2205, #882, the loop of Accelerate's examples.
Right: it is tuned as a DataLoader is.
"""

import time

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Slow(Dataset):
    def __len__(self):
        return 4000

    def __getitem__(self, i):
        time.sleep(0.001)
        return torch.from_numpy(
            np.random.default_rng(i).normal(size=1000).astype(np.float32)
        ), i % 4


def main():
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Sequential(
        torch.nn.Linear(1000, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Slow(), shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(epoch, loss.item())


if __name__ == "__main__":
    main()
