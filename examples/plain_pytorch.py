"""A small image classifier: an ordinary training loop with autotune's two calls.

Train with `python examples/plain_pytorch.py`. Tune with
`python -m autotune run -- python examples/plain_pytorch.py`, which writes best_config.yaml.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import autotune


class NoisyShapes(Dataset):
    """Discs and squares in noise, drawn and augmented when they are asked for."""

    def __init__(self, num_images: int, size: int = 48) -> None:
        self.num_images, self.size = num_images, size

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        random = np.random.default_rng(index)
        y, x = np.mgrid[: self.size, : self.size] - random.uniform(12, 36, size=(2, 1, 1))
        label = index % 2
        distance = np.hypot(x, y) if label else np.maximum(abs(x), abs(y))
        image = 1.0 / (1.0 + np.exp(distance - 8.0))
        image = np.stack([np.roll(image, shift, axis=1) for shift in range(3)])
        image += random.normal(0.0, 0.3, image.shape)
        return torch.from_numpy(image.astype(np.float32)), label


def main() -> None:
    """Train, and print the throughput and the last loss."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=8192)
    args = parser.parse_args()

    torch.manual_seed(0)
    dataset = NoisyShapes(args.num_images)
    layers = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(dataset, shuffle=True, drop_last=True)

    start, num_samples = time.perf_counter(), 0
    for epoch in range(args.epochs):
        for images, labels in autotune.steps(loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            num_samples += len(images)
        rate = num_samples / (time.perf_counter() - start)
        print(f"epoch {epoch}: loss {loss.item():.4f}, {rate:.0f} samples/s, {config}")


if __name__ == "__main__":
    main()
