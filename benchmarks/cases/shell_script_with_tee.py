"""Started by a shell script with a pipe (`shell_script_with_tee.sh`).

Follows: the train.sh of most research repositories; pytorch/pytorch#8805, Lightning#17248.
Right: it is tuned, and nothing is left.
"""

import numpy as np
import torch
from torch.utils.data import Dataset

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
    data = Noise()
    model = torch.nn.Sequential(torch.nn.Linear(4000, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(autotune.steps(loader)):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if i % 20 == 0:
                print(f"step {i} loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
