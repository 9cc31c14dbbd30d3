"""Photos as JPEG files that are decoded on the CPU, and a small ResNet, without autotune."""

from __future__ import annotations

import importlib.util
import io
import zlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

NUM_FILES, SIZE, CROP = 128, 128, 112
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def find_codec() -> str:
    """What decodes images here: Pillow, OpenCV, or zlib where neither is installed."""
    return next((name for name in ("PIL", "cv2") if importlib.util.find_spec(name)), "zlib")


def encode(picture: np.ndarray, codec: str) -> bytes:
    """The file of a picture."""
    if codec == "PIL":
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=90)
        return file.getvalue()
    if codec == "cv2":
        import cv2

        # Its threads would stand in the way of forking.
        cv2.setNumThreads(0)
        return bytes(cv2.imencode(".jpg", picture)[1])
    return zlib.compress(picture.tobytes(), 6)


def decode(file: bytes, codec: str) -> np.ndarray:
    """The picture in a file, (SIZE, SIZE, 3)."""
    if codec == "PIL":
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    if codec == "cv2":
        import cv2

        return np.asarray(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR))
    return np.frombuffer(zlib.decompress(file), np.uint8).reshape(SIZE, SIZE, 3)


class Photos(Dataset[tuple[Tensor, int]]):
    """Files in memory; decoded, cropped, flipped and normalised when they are asked for."""

    def __init__(self) -> None:
        self.codec = find_codec()
        random = np.random.default_rng(0)
        self.files = []
        for _ in range(NUM_FILES):
            # Smooth, so that the files are about as large as those of photographs.
            coarse = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            picture = np.kron(coarse, np.ones((SIZE // 16, SIZE // 16, 1), dtype=np.uint8))
            noise = random.integers(0, 16, picture.shape, dtype=np.uint8)
            self.files.append(encode(picture // 2 + noise, self.codec))

    def __len__(self) -> int:
        return 200_000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        random = np.random.default_rng(index)
        picture = decode(self.files[index % NUM_FILES], self.codec)
        top, left = random.integers(0, SIZE - CROP, 2)
        crop = picture[top : top + CROP, left : left + CROP]
        if random.random() < 0.5:
            crop = crop[:, ::-1]
        pixels = (crop.astype(np.float32) / 255 - MEAN) / STD
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), index % 100


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(num_out),
            nn.ReLU(),
            nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_in, H, W) to (N, num_out, H / stride, W / stride)."""
        return functional.relu(self.main(x) + self.shortcut(x))


def make_model(*, small: bool) -> nn.Module:
    """A ResNet for a hundred classes."""
    widths = (8, 16) if small else (32, 64, 128, 256)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 7, 4 if small else 2, 3), nn.ReLU()]
    for num_in, num_out in zip((widths[0], *widths), widths, strict=False):
        layers.append(Block(num_in, num_out, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 100))
