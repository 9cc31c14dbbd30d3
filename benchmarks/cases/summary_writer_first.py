"""A SummaryWriter starts its thread before the loader is made.

Follows: wandb/wandb#12079, open-mmlab/mmdetection#8145, pytorch/pytorch#75147.
Right: it is tuned, if with slower starts; the output names the thread that prevents forking.
"""

import numpy as np
import torch
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

import autotune

EPOCHS = 2


class Noise(Dataset):
    def __len__(self):
        return 2000

    def __getitem__(self, i):
        return torch.from_numpy(
            np.random.default_rng(i).normal(size=4000).astype(np.float32)
        ), i % 4


def main():
    torch.manual_seed(0)
    writer = SummaryWriter("runs/experiment")
    data = Noise()
    model = torch.nn.Sequential(torch.nn.Linear(4000, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    step = 0
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            writer.add_scalar("loss", loss.item(), step)
            step += 1
    writer.close()


if __name__ == "__main__":
    main()
