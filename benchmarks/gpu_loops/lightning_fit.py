"""Train the model of `language_model.py`, a smaller one, with Lightning."""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from language_model import LanguageModel, Texts
from loop_options import Stopwatch, choose_device, parse_options
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from autotune.integrations.lightning import tune


class Task(lightning.LightningModule):
    """Next ids from the ids before."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        """The loss of a batch, (N, T + 1)."""
        logits = self.model(batch[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-4)


class Timed(lightning.Callback):
    """Times batches, and stops the training when it has lasted long enough."""

    def __init__(self, options: argparse.Namespace, device: str) -> None:
        self.options, self.device = options, device
        self.watch: Stopwatch | None = None

    def on_train_start(self, *_: Any) -> None:
        """Begin once the settings are known."""
        self.watch = Stopwatch(self.options, self.device, 0, None)

    def on_train_batch_end(
        self, trainer: Any, task: Any, outputs: Any, batch: Tensor, index: int
    ) -> None:
        """Count a batch."""
        assert self.watch is not None
        if self.watch.is_over(len(batch)):
            trainer.should_stop = True


def main() -> None:
    """Train."""
    options = parse_options(__doc__)
    device = choose_device(options)
    width, num_layers, length = (64, 1, 64) if options.small else (384, 6, 256)
    task = Task(LanguageModel(width, num_layers, length))
    loader = DataLoader(Texts(length), batch_size=4, shuffle=True, drop_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        precision="32-true" if device == "cpu" else "bf16-mixed",
        max_epochs=options.epochs,
        accumulate_grad_batches=16,
        callbacks=[Timed(options, device)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    loader = tune(trainer, task, loader)
    trainer.fit(task, loader)


if __name__ == "__main__":
    main()
