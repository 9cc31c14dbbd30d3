"""Composer's Trainer, which takes any loader: autotune's two calls around that.

Train with `python examples/composer_trainer.py`. Tune with
`python -m autotune run -- python examples/composer_trainer.py`, which writes best_config.yaml.
"""

import argparse

import torch
from composer import Trainer
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import Dataset

import autotune


class Waves(Dataset):
    """Sines of two frequencies in noise, made when they are asked for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        label = index % 2
        times = torch.arange(2048) / 2048
        wave = torch.sin(2 * torch.pi * (4 + 3 * label) * times)
        for _ in range(20):
            wave = wave + 0.1 * torch.randn(2048, generator=generator)
        return wave, label


def main() -> None:
    """Train; with the settings that were tuned, if there are any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--waves", type=int, default=8000)
    args = parser.parse_args()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2048, 32), nn.ReLU(), nn.Linear(32, 2))
    model = ComposerClassifier(network, num_classes=2)

    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Waves(args.waves), shuffle=True)
    trainer = Trainer(
        model=model,
        train_dataloader=autotune.steps(loader),
        optimizers=torch.optim.Adam(model.parameters(), lr=1e-3),
        max_duration=f"{args.epochs}ep",
        device="cpu",
    )
    trainer.fit()


if __name__ == "__main__":
    main()
