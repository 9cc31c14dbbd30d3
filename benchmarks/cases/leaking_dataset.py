"""A dataset that gets slower: it notes every sample that it has given, and walks through its notes.

Follows: reports of epochs that take longer and longer because a list grows in the dataset.
Right: the output says that the loop gets slower while it runs.
"""

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 4


class Leaking(Dataset):
    def __init__(self):
        self.given = []

    def __len__(self):
        return 4000

    def __getitem__(self, i):
        self.given.append(i)
        times = sum(1 for given in self.given if given == i)
        return torch.full((32,), i / len(self)), times % 4


def main():
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Leaking(), shuffle=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
