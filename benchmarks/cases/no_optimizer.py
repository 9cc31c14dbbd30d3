"""No optimizer: the loop updates the parameters with `.grad` by itself.

Follows: first tutorials, meta-learning, hand-written optimizers.
Right: it is tuned, and the output says that no optimizer takes a step in this loop.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None


if __name__ == "__main__":
    main()
