"""A dataset that takes its time, for the scripts beside it."""

import time

import torch
from torch.utils.data import Dataset


class Pictures(Dataset):
    """Pictures of 3 x 8 x 8 numbers in ten classes; each takes 2 ms to load."""

    def __init__(self, length=256, transform=None):
        self.length, self.transform = length, transform

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(0.002)
        picture = torch.full((3, 8, 8), index / self.length)
        return picture if self.transform is None else self.transform(picture), index % 10


def noisy(picture):
    return picture + 0.1 * torch.randn_like(picture)
