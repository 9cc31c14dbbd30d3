"""Lightning's Trainer owns the loop; a sanity check of the validation loader runs first.

Follows: Lightning-AI/pytorch-lightning#17410, #18834, #16488.
Right: it is tuned.
"""

import logging
import warnings

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset

import autotune

EPOCHS = 2

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Noise(Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.from_numpy(
            np.random.default_rng(i).normal(size=2000).astype(np.float32)
        ), i % 4


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2000, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
        )

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", self.training_step(batch, 0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main():
    torch.manual_seed(0)
    model = Model()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", **quiet)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    train, val = config.dataloader(Noise(3000), shuffle=True), config.dataloader(Noise(200))
    trainer.fit(model, autotune.steps(train), val)


if __name__ == "__main__":
    main()
