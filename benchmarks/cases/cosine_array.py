"""The loop sets the learning rate from an array that it indexes by the step.

Follows: the cosine_scheduler of DINO and MAE: `lr_schedule[it]`.
Right: it is tuned; the array's end fails no trial.
"""

import numpy as np
import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 4


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    rates = 0.05 * (1 + np.cos(np.pi * np.linspace(0, 1, EPOCHS * len(loader))))
    for epoch in range(EPOCHS):
        for i, (x, y) in enumerate(autotune.steps(loader)):
            for group in optimizer.param_groups:
                group["lr"] = rates[epoch * len(loader) + i]
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
