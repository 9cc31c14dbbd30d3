"""A small regression trained with Accelerate, tuned by the two calls.

Train with `python examples/accelerate_loop.py`. Tune with
`python -m autotune run -- python examples/accelerate_loop.py`, which writes best_config.yaml.
"""

import argparse

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

import autotune


class Waves(Dataset):
    """Waves in noise, made when they are asked for; to be told is their frequency."""

    def __init__(self, number: int, length: int = 2048) -> None:
        self.number, self.length = number, length

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        frequency = torch.rand(1, generator=generator)
        time = torch.linspace(0, 100, self.length)
        noise = torch.randn(4, self.length, generator=generator).mean(0)
        return torch.sin(frequency * time) + noise, frequency


def main() -> None:
    """Train; with the settings that were tuned, if there are any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--waves", type=int, default=8000)
    options = parser.parse_args()
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = autotune.load_config(
        "best_config.yaml",
        default=autotune.ThroughputConfig(batch_size=8),
        effective_batch_size=64,
    )
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    loader = config.dataloader(Waves(options.waves), shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for waves, frequencies in autotune.steps(loader):
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(waves), frequencies)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
