"""A compiled model: the first step of each batch size takes seconds.

Follows: pytorch/pytorch#108586, #121197, #148651, #162199.
Right: compiling is not counted as training, its cost is told, no compile worker is left.
"""

import numpy as np
import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Noise(Dataset):
    def __len__(self):
        return 4000

    def __getitem__(self, i):
        return torch.from_numpy(np.random.default_rng(i).normal(size=512).astype(np.float32)), i % 4


def main():
    torch.manual_seed(0)
    data = Noise()
    layers = [
        m
        for _ in range(4)
        for m in (torch.nn.Linear(512, 512), torch.nn.GELU(), torch.nn.LayerNorm(512))
    ]
    model = torch.compile(torch.nn.Sequential(*layers, torch.nn.Linear(512, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    for epoch in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print("epoch", epoch, loss.item())


if __name__ == "__main__":
    main()
