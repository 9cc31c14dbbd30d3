"""A WeightedRandomSampler that draws 1,000 of 4,000 samples for an epoch, some of them twice.

Follows: the usual remedy for unbalanced classes.
Right: an epoch holds 1,000 samples, whatever is tuned.
"""

import torch
from torch.utils.data import TensorDataset, WeightedRandomSampler

import autotune

EPOCHS = 4


def main():
    torch.manual_seed(0)
    labels = (torch.rand(4000) < 0.1).long()
    data = TensorDataset(torch.randn(4000, 64), labels)
    model = torch.nn.Linear(64, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=10)
    config = autotune.load_config("best_config.yaml", default=default)
    weights = torch.where(labels == 1, 9.0, 1.0)
    loader = config.dataloader(data, sampler=WeightedRandomSampler(weights, 1000))
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
