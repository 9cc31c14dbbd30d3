"""`next()` on an iterator that the loop makes anew when it is used up.

Follows: `except StopIteration: it = iter(loader)`, the pattern of GAN and RL scripts.
Right: it is tuned; making a new iterator is normal.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

MAX_STEPS = 300


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(2000, 64), torch.randint(0, 4, (2000,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = autotune.steps(config.dataloader(data, shuffle=True))
    it = iter(loader)
    for _ in range(MAX_STEPS):
        try:
            x, y = next(it)
        except StopIteration:
            it = iter(loader)
            x, y = next(it)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), "last.pt")


if __name__ == "__main__":
    main()
