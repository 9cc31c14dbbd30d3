"""Workers raise from deep inside a library: a traceback of sixty frames, then the reason.

Follows: decoding errors whose message is lost among frames of the loader.
Right: workers are ruled out, and the reason shown is the exception's own last line.
"""

import torch
from torch.utils.data import Dataset, get_worker_info

import autotune

EPOCHS = 2


def decode(i, depth=60):
    if depth:
        return decode(i, depth - 1)
    if get_worker_info() is not None:
        raise ValueError("the licence allows one process only")
    return torch.randn(64, generator=torch.Generator().manual_seed(i))


class Licensed(Dataset):
    def __len__(self):
        return 3000

    def __getitem__(self, i):
        return decode(i), i % 4


def main():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Licensed(), shuffle=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
