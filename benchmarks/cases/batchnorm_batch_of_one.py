"""BatchNorm raises for a batch of one, which the effective batch size of 16 allows.

Follows: pytorch/pytorch#4534.
Right: a batch of one is ruled out with torch's reason; an update takes 16 samples throughout.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    layers = [torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=2)
    config = autotune.load_config("best_config.yaml", default=default, effective_batch_size=16)
    accumulation = config.gradient_accumulation_steps
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(autotune.steps(loader), start=1):
            (torch.nn.functional.cross_entropy(model(x), y) / accumulation).backward()
            if i % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    main()
