"""Gradient accumulation by hand that steps at `i % 4 == 0`, so first after a single batch.

Follows: a frequent variant of accumulation by hand, off by one.
Right: an update takes 64 samples (4 x 16) in the long run.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(autotune.steps(loader)):
            (torch.nn.functional.cross_entropy(model(x), y) / 4).backward()
            if i % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    main()
