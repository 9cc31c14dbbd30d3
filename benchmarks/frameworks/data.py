"""Data that cost nothing and a model that does not, for the scripts beside it."""

import torch
from torch import nn
from torch.utils.data import Dataset

NUM_WORDS, LENGTH = 500, 32


class Sentences(Dataset):
    """Sentences of random words, in memory; the label is whether the first word is a large one."""

    def __init__(self, number=2048):
        generator = torch.Generator().manual_seed(0)
        self.words = torch.randint(1, NUM_WORDS, (number, LENGTH), generator=generator)
        self.labels = (self.words[:, 0] > NUM_WORDS // 2).long()

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        return self.words[index], self.labels[index]


def make_model():
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Embedding(NUM_WORDS, 64),
        nn.TransformerEncoder(layer, 2),
        nn.Flatten(),
        nn.Linear(64 * LENGTH, 2),
    )
