"""Evaluation with `steps` inside the training loop, every 50 steps.

Follows: the eval_interval of research scripts.
Right: the outer loop, in which the optimizer steps, is the one that is measured.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 3


@torch.no_grad()
def evaluate(model, loader):
    losses = [torch.nn.functional.cross_entropy(model(x), y) for x, y in autotune.steps(loader)]
    return torch.stack(losses).mean().item()


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    held_out = TensorDataset(torch.randn(160, 64), torch.randint(0, 4, (160,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    train, val = config.dataloader(data, shuffle=True), config.dataloader(held_out)
    step = 0
    for _ in range(EPOCHS):
        for x, y in autotune.steps(train):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0:
                print("step", step, "held out", evaluate(model, val))


if __name__ == "__main__":
    main()
