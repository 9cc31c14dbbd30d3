"""Keras on torch, whose `fit` takes a DataLoader: autotune's two calls around that.

Train with `python examples/keras_fit.py`. Tune with
`python -m autotune run -- python examples/keras_fit.py`, which writes best_config.yaml.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
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
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((2048,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(2)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)

    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(Waves(args.waves), shuffle=True)
    model.fit(autotune.steps(loader), epochs=args.epochs, verbose=2)


if __name__ == "__main__":
    main()
