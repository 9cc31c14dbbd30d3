"""Train the ResNet of `images.py` as a script that has never heard of autotune."""

from __future__ import annotations

import torch
from loop_options import Stopwatch, choose_device, parse_options
from photos import Photos, make_model
from torch.nn import functional
from torch.utils.data import DataLoader


def main() -> None:
    """Train."""
    options = parse_options(__doc__)
    torch.manual_seed(0)
    device = choose_device(options)
    loader = DataLoader(Photos(), batch_size=64, shuffle=True, num_workers=1, drop_last=True)
    watch = Stopwatch(options, device, loader.num_workers, loader.prefetch_factor)
    model = make_model(small=options.small).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(options.epochs):
        for images, labels in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if watch.is_over(len(images)):
                return


if __name__ == "__main__":
    main()
