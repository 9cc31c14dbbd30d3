"""Hugging Face's Trainer under torchrun: `torchrun --nproc-per-node 2 trainer.py`."""

import data
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from autotune.integrations.transformers import tune


class Samples(data.Sentences):
    def __getitem__(self, index):
        words, label = super().__getitem__(index)
        return {"input_ids": words, "labels": torch.tensor(label)}


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = data.Model()
        self.clock = None

    def forward(self, input_ids, labels):
        loss = data.loss_of(self.net, (input_ids, labels))
        if self.clock:
            self.clock.step(loss.detach())
        return {"loss": loss}


class Stop(TrainerCallback):
    def __init__(self, model):
        self.model = model

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.model.clock is None:
            self.model.clock = data.Clock(args.process_index, args.gradient_accumulation_steps)

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = not self.model.clock.epoch()


if __name__ == "__main__":
    torch.manual_seed(0)
    model = Classifier()
    arguments = TrainingArguments(
        output_dir="out",
        use_cpu=True,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_train_epochs=10**6,
        dataloader_drop_last=True,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=Samples(), callbacks=[Stop(model)])
    tune(trainer)
    trainer.train()
