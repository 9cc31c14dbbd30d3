"""`steps` inside a generator function that prepares the batches.

Follows: the prefetchers and `to_device` generators of training scripts.
Right: it is tuned, through all epochs.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 3


def prepared(loader):
    for x, y in autotune.steps(loader):
        yield x.to(torch.float32) / 255.0, y.to(torch.int64)


def main():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3200, 64), dtype=torch.uint8)
    data = TensorDataset(images, torch.randint(0, 4, (3200,), dtype=torch.uint8))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    for _ in range(EPOCHS):
        for x, y in prepared(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
