"""A script around Lightning's Trainer, with a DataModule."""

import os
import time

import lightning as L
import torch
from data import Pictures
from torch import nn


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def on_train_epoch_start(self):
        self.begin = time.time()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.end = time.time()

    def on_train_epoch_end(self):
        # It comes after the validation.
        seconds = self.end - self.begin
        steps = self.trainer.num_training_batches
        print(f"epoch {self.current_epoch}: {seconds:.3f} s, {steps} steps", flush=True)


class Data(L.LightningDataModule):
    def setup(self, stage):
        self.train, self.val = Pictures(), Pictures(64)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.val, batch_size=16)


if __name__ == "__main__":
    trainer = L.Trainer(
        max_epochs=int(os.environ.get("EPOCHS", 3)), accelerator="cpu", enable_progress_bar=False
    )
    trainer.fit(Model(), datamodule=Data())
