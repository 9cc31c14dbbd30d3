"""Small training loops with known characters, for the other benchmarks: `workloads.py NAME`.

Without --seconds and --steps it trains until it is ended, which is how autotune runs it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import time

import numpy as np
import psutil
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import autotune

TRAP_SAMPLE_S, TRAP_STEP_S, TRAP_FIRST_STEP_S = 0.02, 0.008, 2.0
# What a step sleeps per sample.
SAMPLE_S = {"fixed": 0.01, "idle": 0.0005}
Batch = tuple[torch.Tensor, torch.Tensor]


class Images(Dataset[Batch]):
    """Pictures that are augmented when they are asked for: about 0.2 ms of Python and NumPy."""

    def __init__(self) -> None:
        self.pictures = np.random.default_rng(0).integers(0, 256, (512, 3, 72, 72), dtype=np.uint8)

    def __len__(self) -> int:
        return 16_384

    def __getitem__(self, index: int) -> Batch:
        random = np.random.default_rng(index)
        top, left = random.integers(0, 24, 2)
        image = self.pictures[index % 512, :, top : top + 48, left : left + 48]
        image = image[:, :, :: random.choice((-1, 1))].astype(np.float32)
        image = (image - image.mean()) / (image.std() + 1e-6)
        image += random.normal(0.0, 0.1, image.shape).astype(np.float32)
        return torch.from_numpy(image), torch.tensor(index % 10)


class Decoded(Dataset[Batch]):
    """JPEG files that are decoded, cropped, resized and flipped: about 1 ms of Pillow."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.files = []
        for _ in range(256):
            # Smooth, so that the files are about as large as those of photographs.
            coarse = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((160, 160), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> Batch:
        random = np.random.default_rng(index)
        picture = Image.open(io.BytesIO(self.files[index % len(self.files)])).convert("RGB")
        left, top, size = random.integers(0, 32), random.integers(0, 32), random.integers(96, 129)
        box = (left, top, left + size, top + size)
        picture = picture.resize((48, 48), Image.Resampling.BILINEAR, box)
        pixels = np.asarray(picture)[:, :: random.choice((-1, 1))].transpose(2, 0, 1)
        image = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1.0
        return image, torch.tensor(index % 10)


class Rows(Dataset[Batch]):
    """Rows of a table in memory: tiny samples, of which collating costs the most."""

    def __init__(self) -> None:
        self.rows = torch.randn(200_000, 64, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.rows[index], torch.tensor(index % 10)


class Records(Dataset[dict[str, torch.Tensor]]):
    """Rows of a table with columns of several kinds: four small Python objects for each sample."""

    def __init__(self) -> None:
        self.ids = torch.randint(0, 4000, (300_000, 6))
        self.values = torch.randn(300_000, 8)
        self.labels = torch.randint(0, 10, (300_000,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "ids": self.ids[index],
            "values": self.values[index],
            "label": self.labels[index],
        }


class Arrays(Dataset[Batch]):
    """Arrays of 0.8 MB each: few objects, much memory."""

    def __init__(self) -> None:
        self.arrays = np.random.default_rng(0).standard_normal((64, 3, 256, 256), dtype=np.float32)

    def __len__(self) -> int:
        return 16_384

    def __getitem__(self, index: int) -> Batch:
        array = self.arrays[index % len(self.arrays)]
        return torch.from_numpy(np.maximum(array, 0.0) + 0.1), torch.tensor(index % 10)


class Tokens(Dataset[Batch]):
    """Windows of a text that lies in memory: loading costs nearly nothing."""

    def __init__(self) -> None:
        self.text = torch.randint(0, 256, (1_000_000,), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> Batch:
        window = self.text[index * 16 : index * 16 + 65]
        return window[:-1], window[1:]


class Slow(Dataset[Batch]):
    """Samples that take their time and no CPU, as from a distant storage."""

    def __init__(self, sample_s: float) -> None:
        self.sample_s = sample_s

    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, index: int) -> Batch:
        time.sleep(self.sample_s)
        return torch.full((64,), float(index % 7)), torch.tensor(index % 10)


class LanguageModel(nn.Module):
    """Two Transformer layers over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 256)

    def forward(self, tokens_bt: torch.Tensor) -> torch.Tensor:
        """Logits, [B, V, T]."""
        return self.head(self.layers(self.embedding(tokens_bt))).transpose(1, 2)


class TableModel(nn.Module):
    """Embeddings of the categories beside the numbers, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4000, 16)
        self.layers = nn.Sequential(nn.Linear(6 * 16 + 8, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, ids_bc: torch.Tensor, values_bf: torch.Tensor) -> torch.Tensor:
        """Logits, [B, 10], from C categories and F numbers of each row."""
        return self.layers(torch.cat([self.embedding(ids_bc).flatten(1), values_bf], dim=1))


class ListModel(nn.Module):
    """A step that turns its batch into nested Python lists and back: 64 lists for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron()

    def forward(self, x_bf: torch.Tensor) -> torch.Tensor:
        """Logits, [B, 10]."""
        rows = [[[value] for value in row] for row in x_bf.tolist()]
        return self.layers(torch.tensor([[value for [value] in row] for row in rows]))


def pooled() -> nn.Module:
    """A model that looks at means of large arrays only."""
    return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3 * 8 * 8, 10))


def convolutions() -> nn.Module:
    """A small image classifier."""
    layers = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))


def perceptron() -> nn.Module:
    """A model that takes next to no time."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


WORKLOADS = {
    "images": (Images, convolutions),
    "tokens": (Tokens, LanguageModel),
    "decoded": (Decoded, convolutions),
    "rows": (Rows, perceptron),
    "records": (Records, TableModel),
    "arrays": (Arrays, pooled),
    "lists": (Rows, ListModel),
    "storage": (lambda: Slow(0.002), perceptron),
    # The loader is the bottleneck, and a slow first step leaves its workers time to get ahead.
    "trap": (lambda: Slow(TRAP_SAMPLE_S), perceptron),
    # No setting changes the speed: each sample takes its time in the step.
    "fixed": (lambda: Slow(0.0), perceptron),
    # The same with less: what a step costs beside it, and how threads wake up, can be felt.
    "idle": (lambda: Slow(0.0), perceptron),
}


def tree_cpu_s() -> float:
    """CPU seconds that this process and its loader's workers have used."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children())]
    return sum(found.user + found.system for found in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=WORKLOADS)
    parser.add_argument("--seconds", type=float, help="train so long, and print the throughput")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds before these")
    parser.add_argument("--steps", type=int, help="train so many steps, and print the throughput")
    parser.add_argument("--config", default='{"batch_size": 32}', help="settings, as JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    make_dataset, make_model = WORKLOADS[args.name]
    dataset, model = make_dataset(), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    default = autotune.ThroughputConfig(**json.loads(args.config))
    config = autotune.load_config(None, default=default)
    loader = config.dataloader(dataset, shuffle=True, drop_last=True)

    start_s = time.monotonic()
    counted_from_s = start_s + (args.warm_up if args.seconds else 0.0)
    num_samples, num_steps, start_cpu_s = 0, 0, tree_cpu_s()
    for _ in itertools.count():
        for batch in autotune.steps(loader):
            *inputs, y = batch.values() if isinstance(batch, dict) else batch
            loss = nn.functional.cross_entropy(model(*inputs), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if args.name == "trap":
                time.sleep(TRAP_FIRST_STEP_S if num_steps == 0 else TRAP_STEP_S)
            if args.name in SAMPLE_S:
                time.sleep(SAMPLE_S[args.name] * len(y))
            num_steps += 1
            now_s = time.monotonic()
            if now_s < counted_from_s:
                start_s, start_cpu_s = now_s, tree_cpu_s()
                continue
            num_samples += len(y)
            if (args.steps and num_steps == args.steps) or (
                args.seconds and now_s > counted_from_s + args.seconds
            ):
                figures = {
                    "samples_per_s": num_samples / (now_s - start_s),
                    "cpu_s_per_sample": (tree_cpu_s() - start_cpu_s) / num_samples,
                }
                print(json.dumps(figures))
                return


if __name__ == "__main__":
    main()
