"""Two loaders at different rates: a replayed batch by `next()` at every third step.

Follows: rehearsal in continual learning, GAN training with two data sets.
Right: the loop over the first loader is measured; the second may be taken from at any time.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 3


def forever(loader):
    while True:
        yield from autotune.steps(loader)


def main():
    torch.manual_seed(0)
    new = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    old = TensorDataset(torch.randn(800, 64), torch.randint(0, 4, (800,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(new, shuffle=True, drop_last=True)
    replay = forever(config.dataloader(old, shuffle=True, drop_last=True))
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(autotune.steps(loader)):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            if i % 3 == 0:
                old_x, old_y = next(replay)
                loss = loss + torch.nn.functional.cross_entropy(model(old_x), old_y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
