"""A progress bar and `enumerate` around `steps`.

Follows: `for i, batch in enumerate(tqdm(loader))`.
Right: it is tuned.
"""

import torch
from torch.utils.data import TensorDataset
from tqdm import tqdm

import autotune

EPOCHS = 3


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    for epoch in range(EPOCHS):
        bar = tqdm(autotune.steps(loader), desc=f"epoch {epoch}", total=len(loader))
        for i, (x, y) in enumerate(bar):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if i % 20 == 0:
                bar.set_postfix(loss=loss.item())


if __name__ == "__main__":
    main()
