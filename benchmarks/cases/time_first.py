"""Sequences with time as the first dimension: a batch has the shape (40, batch, 16).

Follows: the layout that torch.nn.LSTM has by default (batch_first=False).
Right: a step counts as its samples, not as 40; an epoch holds 2,000.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def time_first(samples):
    sequences, labels = zip(*samples, strict=True)
    return torch.stack(sequences, dim=1), torch.stack(labels)


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(2000, 40, 16), torch.randint(0, 4, (2000,)))
    lstm, head = torch.nn.LSTM(16, 16), torch.nn.Linear(16, 4)
    optimizer = torch.optim.SGD([*lstm.parameters(), *head.parameters()], lr=0.1)
    default = autotune.ThroughputConfig(batch_size=8)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, collate_fn=time_first)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(head(lstm(x)[0][-1]), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
