"""Mixed precision: the gradient scaler skips the optimizer step of every fourth batch.

Follows: torch.amp.GradScaler, which skips a step whose gradients are not finite.
The scale grows after three good steps and falls with the fourth, so that it stays where it is.
Right: three updates in four batches of 32, that is 42.7 samples per update.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    step = 0
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            step += 1
            if step % 4 == 0:
                model[0].bias.grad[0] = float("inf")
            scaler.step(optimizer)
            scaler.update()


if __name__ == "__main__":
    main()
