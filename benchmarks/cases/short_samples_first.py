"""A curriculum: the first epoch goes from short samples to long ones, all others are shuffled.

Follows: SortaGrad of speech recognition (Deep Speech 2).
Right: what is stated holds for the epochs after the first; a first epoch unlike them is noticed.
"""

import random

import torch
from torch.utils.data import Dataset, Sampler

import autotune

EPOCHS = 5


class Utterances(Dataset):
    def __init__(self, num_samples):
        chance = random.Random(0)
        self.lengths = [chance.randint(10, 600) for _ in range(num_samples)]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        return torch.full((self.lengths[i], 16), i / len(self))


class SortedFirst(Sampler):
    def __init__(self, lengths):
        self.lengths, self.num_epochs = lengths, 0

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        if self.num_epochs:
            random.Random(self.num_epochs).shuffle(order)
        self.num_epochs += 1
        return iter(order)


def pad(samples):
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)


def main():
    torch.manual_seed(0)
    data = Utterances(800)
    model = torch.nn.Sequential(torch.nn.Linear(16, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=8)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, sampler=SortedFirst(data.lengths), collate_fn=pad)
    for _ in range(EPOCHS):
        for batch in autotune.steps(loader):
            loss = model(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
