"""Data that take a moment, a model that takes another, and a clock, for the scripts beside it."""

import os
import time

import torch
from torch import nn
from torch.utils.data import Dataset

NUM_WORDS, LENGTH = 100, 32
# Whether the script is to say its losses rather than how long its epochs take.
SAYS_LOSSES = "LOSSES" in os.environ
EFFECTIVE_BATCH = 32


class Sentences(Dataset):
    """Random words; a sentence takes ITEM_MS to load, and on rank 1 as long as SLOW_MS says."""

    def __init__(self, number=1024):
        self.number = number
        item_ms = os.environ.get("ITEM_MS", "1")
        slow_ms = os.environ.get("SLOW_MS", item_ms)
        self.item_s = float(slow_ms if os.environ.get("RANK") == "1" else item_ms) / 1000

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if self.item_s:
            time.sleep(self.item_s)
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, NUM_WORDS, (LENGTH,), generator=generator), index % 2


class Model(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.words = nn.Embedding(NUM_WORDS, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 256, batch_first=True, dropout=0.0)
        self.head = nn.Linear(width, 2)

    def forward(self, words):
        return self.head(self.layer(self.words(words)).mean(1))


class Recurrent(nn.Module):
    """One small step after another, of which threads cannot share out much."""

    def __init__(self, width=96):
        super().__init__()
        self.words = nn.Embedding(NUM_WORDS, width)
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, words):
        state = torch.zeros(len(words), self.head.in_features)
        for word in self.words(words).unbind(1):
            state = self.cell(word, state)
        return self.head(state)


def make_model():
    return Recurrent() if "RECURRENT" in os.environ else Model()


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Clock:
    """Says how long epochs take, and when it is time to stop; or the losses of updates."""

    def __init__(self, rank, accumulation):
        self.rank, self.accumulation = rank, accumulation
        self.end_s = time.monotonic() + float(os.environ.get("SECONDS", 1e9))
        self.losses = []
        self.num_steps = self.num_updates = self.num_epochs = 0
        self.begun_s = time.monotonic()

    def step(self, loss):
        self.num_steps += 1
        if not SAYS_LOSSES:
            return
        # Ranks may share the samples of an update out in another way.
        loss = loss.detach().clone()
        torch.distributed.all_reduce(loss)
        self.losses.append(float(loss) / torch.distributed.get_world_size())
        if len(self.losses) == self.accumulation:
            self.num_updates += 1
            if self.rank == 0:
                print(f"loss {sum(self.losses) / self.accumulation:.6f}", flush=True)
            self.losses = []
            if self.num_updates == 20:
                os._exit(0)

    def epoch(self):
        """Says how long the epoch took; gives whether there is time for another."""
        seconds = time.monotonic() - self.begun_s
        if self.rank == 0:
            print(f"epoch {self.num_epochs}: {seconds:.3f} s, {self.num_steps} steps", flush=True)
        self.num_epochs += 1
        self.num_steps = 0
        # All ranks must say the same.
        left = torch.tensor([float(time.monotonic() < self.end_s)])
        torch.distributed.all_reduce(left, torch.distributed.ReduceOp.MIN)
        self.begun_s = time.monotonic()
        return bool(left)
