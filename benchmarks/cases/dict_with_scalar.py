"""Batches are dicts that also hold a scalar tensor, a number and a name.

Follows: the collate functions of detection and speech toolkits, which put totals into the batch.
Right: a batch counts as its samples; an epoch holds 3,000.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def collate(samples):
    x, y = (torch.stack(part) for part in zip(*samples, strict=True))
    return {"scale": x.std(), "num_values": x.numel(), "split": "train", "x": x, "y": y}


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3000, 64), torch.randint(0, 4, (3000,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters())
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, collate_fn=collate)
    for _ in range(EPOCHS):
        for batch in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(batch["x"] / batch["scale"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
