"""LambdaLR looks the learning rate up in a list of epochs * len(loader) values.

Follows: warm-up schedules written out as a list.
Right: it is tuned; the list's end fails no trial.
"""

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
    num_steps = EPOCHS * len(loader)
    factors = [min(1.0, (step + 1) / 100) for step in range(num_steps + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[step])
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main()
