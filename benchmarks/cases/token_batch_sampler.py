"""A batch sampler decides how many sentences make up a batch: 512 tokens each.

Follows: PetrochukM/PyTorch-NLP#114, huggingface/transformers#14767, fairseq's --max-tokens.
Right: `config.dataloader` accepts `batch_sampler`. The batch size is not tuned, and the output says
so; workers, prefetch depth and threads are.
"""

import random

import torch
from torch.utils.data import Dataset, Sampler

import autotune

EPOCHS = 1


class Sentences(Dataset):
    def __init__(self, n):
        r = random.Random(0)
        self.lengths = [r.randint(5, 60) for _ in range(n)]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        return torch.randint(1, 500, (self.lengths[i],), generator=g)


class MaxTokens(Sampler):
    def __init__(self, lengths, max_tokens):
        self.lengths, self.max_tokens = lengths, max_tokens

    def __iter__(self):
        order = sorted(range(len(self.lengths)), key=lambda i: (self.lengths[i], random.random()))
        batches, batch = [], []
        for i in order:
            if batch and self.lengths[i] * (len(batch) + 1) > self.max_tokens:
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
        random.shuffle(batches)
        return iter(batches)


def pad(samples):
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)


def main():
    torch.manual_seed(0)
    data = Sentences(4000)
    model = torch.nn.Sequential(torch.nn.Embedding(500, 64), torch.nn.Linear(64, 500))
    optimizer = torch.optim.Adam(model.parameters())
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, batch_sampler=MaxTokens(data.lengths, 512), collate_fn=pad)
    for _ in range(EPOCHS):
        for batch in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(
                model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
