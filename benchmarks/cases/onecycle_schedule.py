"""OneCycleLR raises once it is stepped more often than epochs * len(loader).

Follows: pytorch/pytorch#32898, vLAR-group/GrowSP#11, A4Bio/PiFold#6.
Right: it is tuned; the end of the schedule fails no trial.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 10


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4000, 128), torch.randint(0, 10, (4000,)))
    model = torch.nn.Sequential(
        torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, epochs=EPOCHS, steps_per_epoch=len(loader)
    )
    for epoch in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch} loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
