"""Train a network that works on every pixel of enlarged images: few operations, much memory."""

from __future__ import annotations

import math

import torch
from loop_options import Stopwatch, choose_device, parse_options
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import autotune

WIDTH, NUM_LAYERS, SCALE = 16, 4, 8
# Kept for the backward pass of each pixel: what goes into each convolution and each activation,
# (2 * NUM_LAYERS * WIDTH values), and the enlarged image.
BYTES_PER_PIXEL = 4 * (2 * NUM_LAYERS * WIDTH + 3)


class Images(Dataset[Tensor]):
    """Small images."""

    def __init__(self, size: int) -> None:
        self.images = torch.rand(64, 3, size, size)

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index % len(self.images)]


def make_model() -> nn.Module:
    """Enlarges images, and treats each pixel by itself."""
    layers: list[nn.Module] = [nn.Upsample(scale_factor=SCALE), nn.Conv2d(3, WIDTH, 1)]
    for _ in range(NUM_LAYERS):
        layers += [nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 1)]
    return nn.Sequential(*layers[:-1], nn.Conv2d(WIDTH, 3, 1))


def image_size(sample_mib: float) -> int:
    """Pixels on an edge, before images are enlarged, for so many MiB of activations."""
    return max(1, round(math.sqrt(sample_mib * 2**20 / BYTES_PER_PIXEL) / SCALE))


def main() -> None:
    """Train."""
    options = parse_options(__doc__)
    torch.manual_seed(0)
    dataset = Images(image_size(options.sample_mib))
    model = make_model()
    device = choose_device(options)
    if options.cuda_first:
        model.to(device)
    default = autotune.ThroughputConfig(**{"batch_size": 16} | options.settings)
    config = autotune.load_config("best_config.yaml", default=default)

    watch = Stopwatch(options, device, config.num_workers, config.prefetch_factor)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loader = config.dataloader(dataset, shuffle=True, drop_last=True)
    for _ in range(options.epochs):
        for batch in autotune.steps(loader):
            images = batch.to(device, non_blocking=True)
            enlarged = functional.interpolate(images, scale_factor=SCALE, mode="bilinear")
            loss = functional.mse_loss(model(images), enlarged)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if watch.is_over(len(batch)):
                return


if __name__ == "__main__":
    main()
