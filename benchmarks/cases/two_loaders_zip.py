"""A labelled and an unlabelled loader feed one step; both are given to `steps`.

Follows: pascalcpp/SDCL#6, jindongwang/transferlearning#189.
Right: it is tuned. There is one clear rule for several loaders in one loop.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 1


def main():
    torch.manual_seed(0)
    labelled = TensorDataset(torch.randn(2000, 32), torch.randint(0, 5, (2000,)))
    unlabelled = TensorDataset(torch.randn(3000, 32))
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader_l = config.dataloader(labelled, shuffle=True, drop_last=True)
    loader_u = config.dataloader(unlabelled, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for (x, y), (u,) in zip(autotune.steps(loader_l), autotune.steps(loader_u), strict=False):
            out = model(u).softmax(1)
            loss = (
                torch.nn.functional.cross_entropy(model(x), y)
                - 0.1 * (out * out.log()).sum(1).mean()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
