"""Averaged weights, a forward hook and a loader that is wrapped once, outside the epochs.

Follows: EMA in diffusion training.
Right: it is tuned; the optimizer step is the update, averaging is none.
"""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 3


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 4, (3200,)))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    seen = []
    model[1].register_forward_hook(lambda *found: seen.append(float(found[2].detach().mean())))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(model.parameters())
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = autotune.steps(config.dataloader(data, shuffle=True, drop_last=True))
    for _ in range(EPOCHS):
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update_parameters(model)
        seen.clear()


if __name__ == "__main__":
    main()
