"""Lightning under torchrun: `torchrun --nproc-per-node 2 lightning_fit.py`."""

import os

import data
import lightning
import torch

from autotune.integrations.lightning import tune


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = data.Model()
        self.clock = None

    def training_step(self, batch, index):
        loss = data.loss_of(self.net, batch)
        self.clock.step(loss.detach())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def on_train_epoch_start(self):
        if self.clock is None:
            accumulation = self.trainer.accumulate_grad_batches
            self.clock = data.Clock(self.global_rank, accumulation)

    def on_train_epoch_end(self):
        self.trainer.should_stop = not self.clock.epoch()


if __name__ == "__main__":
    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        max_epochs=-1,
        accumulate_grad_batches=2,
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", 1)),
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
    )
    model = Module()
    loader = torch.utils.data.DataLoader(data.Sentences(), batch_size=8, drop_last=True)
    loader = tune(trainer, model, loader)
    trainer.fit(model, loader)
