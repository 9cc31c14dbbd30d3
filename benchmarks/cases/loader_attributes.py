"""The loop asks the loader for `dataset`, its length and `sampler`.

Follows: the progress line of pytorch/examples' mnist;
CompVis/metric-learning-divide-and-conquer#12.
Right: it is tuned. What the loader has, its stand-in in a trial has.
"""

import torch
from torch.utils.data import RandomSampler, TensorDataset

import autotune

EPOCHS = 2


def train(epoch, model, loader, optimizer):
    for i, (x, y) in enumerate(loader):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 50 == 0:
            done = f"{i * len(x)}/{len(loader.dataset)} ({100 * i / len(loader):.0f} %)"
            print(f"epoch {epoch} [{done}] {loss.item():.3f}")


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4000, 64), torch.randint(0, 10, (4000,)))
    model = torch.nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = autotune.steps(config.dataloader(data, sampler=RandomSampler(data)))
    for epoch in range(EPOCHS):
        train(epoch, model, loader, optimizer)


if __name__ == "__main__":
    main()
