"""200 images, drop_last, and OpenCV threads that start before workers are forked.

Follows: pytorch/pytorch#1838, #1355, #45198, cvg/Hierarchical-Localization#14, albumentations#1825.
Right: no batch is larger than the data, and what was measured is confirmed. Where trials must
start afresh, the output says what started the threads.
"""

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2


class Images(Dataset):
    def __init__(self, n):
        self.images = np.random.default_rng(0).integers(0, 255, (n, 300, 300, 3), np.uint8)
        self.mean = np.mean([cv2.GaussianBlur(im, (15, 15), 3).mean() for im in self.images])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        turn = cv2.getRotationMatrix2D((150, 150), float(i % 40), 1.0)
        im = cv2.warpAffine(self.images[i], turn, (300, 300))
        im = cv2.resize(cv2.GaussianBlur(im, (9, 9), 2), (64, 64))
        return torch.from_numpy((im - self.mean).astype(np.float32)).flatten(), i % 4


def main():
    torch.manual_seed(0)
    data = Images(200)
    model = torch.nn.Sequential(
        torch.nn.Linear(64 * 64 * 3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    default = autotune.ThroughputConfig(batch_size=16)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for x, y in autotune.steps(loader):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
