"""Gradient accumulation by hand (x 4), of which autotune is not told.

Follows: the `if (i + 1) % 4 == 0` of the PyTorch and Hugging Face forums.
Right: optimizer steps are counted where they happen: an update takes 128 samples, not 32.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

ACCUMULATE = 4
EPOCHS = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4000, 64), torch.randint(0, 10, (4000,)))
    first = [torch.nn.Linear(64, 1500), torch.nn.ReLU()]
    second = [torch.nn.Linear(1500, 1500), torch.nn.ReLU()]
    model = torch.nn.Sequential(*first, *second, torch.nn.Linear(1500, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(autotune.steps(loader)):
            loss = torch.nn.functional.cross_entropy(model(x), y) / ACCUMULATE
            loss.backward()
            if (i + 1) % ACCUMULATE == 0:
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    main()
