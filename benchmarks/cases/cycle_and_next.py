"""An endless generator over the loader, `next()`, and checkpoints in between.

Follows: the cycle(loader) of lucidrains' repositories, mmengine's IterBasedTrainLoop,
pytorch/pytorch#23662.
Right: it is tuned. Nothing after the loop runs in a trial: no trial writes the last checkpoint.
"""

import os

import torch
from torch.utils.data import TensorDataset

import autotune

MAX_STEPS = 400


def cycle(loader):
    while True:
        yield from loader


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4000, 64), torch.randint(0, 10, (4000,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    batches = cycle(autotune.steps(config.dataloader(data, shuffle=True)))
    step = 0
    while step < MAX_STEPS:
        x, y = next(batches)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 200 == 0:
            torch.save(model.state_dict(), f"model-{step}.pt")
    torch.save(model.state_dict(), "model-final.pt")
    print("trained", os.getpid())


if __name__ == "__main__":
    main()
