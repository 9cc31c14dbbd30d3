"""A small image classifier trained by Lightning, tuned by one line.

Train with `python examples/lightning_module.py`. Tune with
`python -m autotune run -- python examples/lightning_module.py`, which writes best_config.yaml.
The images are made on the spot: nothing is downloaded.
"""

import argparse

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from autotune.integrations.lightning import tune


class Rings(Dataset):
    """Rings and discs in noise, drawn when they are asked for."""

    def __init__(self, number: int, size: int = 40) -> None:
        self.number, self.size = number, size

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        axis = torch.arange(self.size) - self.size / 2
        distance = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
        inner = 6 * (index % 2)
        image = ((distance > inner) & (distance < 12)).float()
        noise = torch.randn(8, self.size, self.size, generator=generator).mean(0)
        return (image + noise)[None], index % 2


class Data(lightning.LightningDataModule):
    """The loaders."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def train_dataloader(self) -> DataLoader:
        """Of the images to learn from."""
        return DataLoader(Rings(self.number), batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Of others."""
        return DataLoader(Rings(200), batch_size=64)


class Classifier(lightning.LightningModule):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 2),
        )

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of one batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """The share of a batch that is told right."""
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train; with the settings that were tuned, if there are any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=6000)
    options = parser.parse_args()
    lightning.seed_everything(0)
    model, data = Classifier(), Data(options.images)
    trainer = lightning.Trainer(max_epochs=1, accumulate_grad_batches=8, default_root_dir="out")
    tune(trainer, model, datamodule=data)
    trainer.fit(model, datamodule=data)


if __name__ == "__main__":
    main()
