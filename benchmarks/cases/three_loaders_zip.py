"""Three loaders in one `zip`, all of them given to `steps`.

Follows: triplet and multi-task training.
Right: it is tuned, by the same rule as two loaders.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def main():
    torch.manual_seed(0)
    tasks = [
        TensorDataset(torch.randn(n, 32), torch.randint(0, 4, (n,))) for n in (1600, 2400, 3200)
    ]
    body = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU())
    heads = torch.nn.ModuleList([torch.nn.Linear(64, 4) for _ in tasks])
    optimizer = torch.optim.SGD([*body.parameters(), *heads.parameters()], lr=0.1)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loaders = [config.dataloader(task, shuffle=True, drop_last=True) for task in tasks]
    for _ in range(EPOCHS):
        for batches in zip(*map(autotune.steps, loaders), strict=False):
            loss = sum(
                torch.nn.functional.cross_entropy(head(body(x)), y)
                for head, (x, y) in zip(heads, batches, strict=True)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
