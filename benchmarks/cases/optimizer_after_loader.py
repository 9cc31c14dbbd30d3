"""Model and optimizer are made after the loader and after `load_config`.

Follows: scripts that build the data first and take the number of classes from it.
Right: it is tuned; the optimizer that appears late is seen.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    num_classes = int(data.tensors[1].max()) + 1
    layers = [torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, num_classes)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(autotune.steps(loader)):
            torch.nn.functional.cross_entropy(model(x), y).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    main()
