"""Hugging Face's Trainer on a step that computes."""

import os
import time

import torch
from data import Sentences, make_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from autotune.integrations.transformers import tune


class Samples(torch.utils.data.Dataset):
    def __init__(self):
        self.sentences = Sentences()

    def __len__(self):
        return len(self.sentences)

    def __getitem__(self, index):
        words, label = self.sentences[index]
        return {"input_ids": words, "labels": label}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make_model()

    def forward(self, input_ids, labels):
        logits = self.net(input_ids)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Clock(TrainerCallback):
    def on_epoch_begin(self, args, state, control, **kwargs):
        self.begin, self.steps = time.time(), state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        seconds, steps = time.time() - self.begin, state.global_step - self.steps
        print(f"epoch {state.epoch:.0f}: {seconds:.3f} s, {steps} steps", flush=True)


if __name__ == "__main__":
    arguments = TrainingArguments(
        output_dir="out",
        use_cpu=True,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=8,
        num_train_epochs=int(os.environ.get("EPOCHS", 3)),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(Model(), arguments, train_dataset=Samples(), callbacks=[Clock()])
    tune(trainer)
    trainer.train()
