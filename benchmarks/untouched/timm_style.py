"""In the style of timm's train.py: a factory makes both loaders, a wrapper moves the batches."""

import os
import time

import torch
from data import Pictures, noisy
from torch import nn
from torch.utils.data import DataLoader


class PrefetchLoader:
    def __init__(self, loader, std=0.5):
        self.loader, self.std = loader, std

    def __iter__(self):
        first = True
        for next_input, next_target in self.loader:
            next_input = next_input.div_(self.std)
            if not first:
                yield input_, target
            first = False
            input_, target = next_input, next_target
        yield input_, target

    def __len__(self):
        return len(self.loader)

    @property
    def dataset(self):
        return self.loader.dataset


def create_loader(dataset, batch_size, is_training=False, num_workers=0):
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=is_training,
        num_workers=num_workers,
        drop_last=is_training,
    )
    return PrefetchLoader(loader)


def main():
    loader_eval = create_loader(Pictures(64), 16)
    loader_train = create_loader(Pictures(transform=noisy), 16, is_training=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu")
    num_updates = 0
    for epoch in range(int(os.environ.get("EPOCHS", 3))):
        begin = time.time()
        for input_, target in loader_train:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(input_), target)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            num_updates += 1
        print(f"epoch {epoch}: {time.time() - begin:.3f} s, {len(loader_train)} steps", flush=True)
        with torch.inference_mode():
            for input_, target in loader_eval:
                nn.functional.cross_entropy(model(input_), target)


if __name__ == "__main__":
    main()
