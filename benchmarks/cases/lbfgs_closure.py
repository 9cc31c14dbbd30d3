"""LBFGS evaluates its closure several times in one optimizer step.

Follows: the documentation of torch.optim.LBFGS.
Right: an update for each batch of 64, however often the closure runs.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    model = torch.nn.Linear(64, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=4)
    default = autotune.ThroughputConfig(batch_size=64)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)


if __name__ == "__main__":
    main()
