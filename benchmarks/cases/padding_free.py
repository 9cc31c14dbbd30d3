"""Padding-free batches: N documents in one row of shape (1, tokens).

Follows: huggingface/transformers#33945, DataCollatorWithFlattening, TRL's padding_free.
Right: a batch counts as its documents, not as one sample; no "speed-up" makes the epoch longer.
"""

import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 1


class Documents(Dataset):
    def __len__(self):
        return 5000

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        n = int(torch.randint(10, 40, (1,), generator=g))
        return torch.randint(1, 300, (n,), generator=g)


def flatten(samples):
    ids = torch.cat(samples)[None]
    positions = torch.cat([torch.arange(len(s)) for s in samples])[None]
    return {"input_ids": ids, "position_ids": positions, "labels": ids.clone()}


def main():
    torch.manual_seed(0)
    data = Documents()
    tokens, places = torch.nn.Embedding(300, 64), torch.nn.Embedding(64, 64)
    layers = [m for _ in range(12) for m in (torch.nn.Linear(64, 64), torch.nn.GELU())]
    body = torch.nn.Sequential(*layers, torch.nn.Linear(64, 300))
    optimizer = torch.optim.AdamW([*tokens.parameters(), *places.parameters(), *body.parameters()])
    default = autotune.ThroughputConfig(batch_size=8)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, collate_fn=flatten, drop_last=True)
    for _ in range(EPOCHS):
        for batch in autotune.steps(loader):
            out = body(tokens(batch["input_ids"]) + places(batch["position_ids"]))
            loss = torch.nn.functional.cross_entropy(out[0, :-1], batch["labels"][0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
