"""The loop is left by `break` at a number of steps, and the model is saved.

Follows: the max_iters of nanoGPT, Lightning's limit_train_batches.
Right: it is tuned; no trial writes the model.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

MAX_STEPS = 200


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4000, 64), torch.randint(0, 10, (4000,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    step = 0
    while step < MAX_STEPS:
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step >= MAX_STEPS:
                break
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
