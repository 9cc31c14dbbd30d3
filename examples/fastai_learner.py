"""A Learner of fastai, whose DataLoaders take any loader: autotune's two calls around the first.

Train with `python examples/fastai_learner.py`. Tune with
`python -m autotune run -- python examples/fastai_learner.py`, which writes best_config.yaml.
"""

import argparse

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
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
    model = nn.Sequential(nn.Linear(2048, 32), nn.ReLU(), nn.Linear(32, 2))

    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    train = config.dataloader(Waves(args.waves), shuffle=True)
    valid = torch.utils.data.DataLoader(Waves(200), batch_size=50)
    data = DataLoaders(autotune.steps(train), valid)
    Learner(data, model, loss_func=nn.CrossEntropyLoss()).fit(args.epochs, 1e-3)


if __name__ == "__main__":
    main()
