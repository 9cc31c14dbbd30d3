"""A checkpoint is saved in `finally`, and on Ctrl-C: code that runs however the loop is left.

Follows: `except KeyboardInterrupt: save()` of many training scripts.
Right: it is tuned; no trial writes a checkpoint.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    try:
        for _ in range(EPOCHS):
            for x, y in autotune.steps(loader):
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    except KeyboardInterrupt:
        torch.save(model.state_dict(), "interrupted.pt")
    finally:
        torch.save(model.state_dict(), "checkpoint.pt")


if __name__ == "__main__":
    main()
