"""Lightning's Trainer on a step that computes."""

import os
import time

import lightning as L
import torch
from data import Sentences, make_model
from torch import nn

from autotune.integrations.lightning import tune


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_model()

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def on_train_epoch_start(self):
        self.begin, self.steps = time.time(), self.global_step

    def on_train_epoch_end(self):
        seconds, steps = time.time() - self.begin, self.global_step - self.steps
        print(f"epoch {self.current_epoch}: {seconds:.3f} s, {steps} steps", flush=True)


if __name__ == "__main__":
    model = Model()
    loader = torch.utils.data.DataLoader(Sentences(), batch_size=8, shuffle=True)
    trainer = L.Trainer(
        max_epochs=int(os.environ.get("EPOCHS", 3)),
        accumulate_grad_batches=8,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
    )
    loader = tune(trainer, model, loader)
    trainer.fit(model, loader)
