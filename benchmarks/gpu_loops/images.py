"""Train a small ResNet on JPEG files that are decoded on the CPU."""

from __future__ import annotations

import torch
from loop_options import Stopwatch, choose_device, parse_options
from photos import Photos, make_model
from torch.nn import functional

import autotune


def main() -> None:
    """Train."""
    options = parse_options(__doc__)
    torch.manual_seed(0)
    dataset = Photos()
    model = make_model(small=options.small)
    device = choose_device(options)
    if options.cuda_first:
        model.to(device)
    default = autotune.ThroughputConfig(**{"batch_size": 64, "num_workers": 2} | options.settings)
    config = autotune.load_config("best_config.yaml", default=default)

    watch = Stopwatch(options, device, config.num_workers, config.prefetch_factor)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train = torch.compile(model) if options.compile else model
    loader = config.dataloader(dataset, shuffle=True, drop_last=True)
    for _ in range(options.epochs):
        for images, labels in autotune.steps(loader):
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                loss = functional.cross_entropy(train(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if watch.is_over(len(images)):
                return


if __name__ == "__main__":
    main()
