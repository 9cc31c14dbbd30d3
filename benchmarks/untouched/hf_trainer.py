"""A script around the Trainer of Hugging Face."""

import os

import torch
from data import Pictures
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments


class Samples(torch.utils.data.Dataset):
    def __init__(self, length):
        self.pictures = Pictures(length)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        picture, label = self.pictures[index]
        return {"picture": picture, "labels": label}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 10)

    def forward(self, picture, labels):
        logits = self.head(picture.flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Clock(TrainerCallback):
    def on_epoch_begin(self, args, state, control, **kwargs):
        import time

        self.begin, self.steps = time.time(), state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        import time

        steps = state.global_step - self.steps
        print(
            f"epoch {state.epoch:.0f}: {time.time() - self.begin:.3f} s, {steps} steps", flush=True
        )


if __name__ == "__main__":
    arguments = TrainingArguments(
        output_dir="out",
        use_cpu=True,
        per_device_train_batch_size=16,
        num_train_epochs=int(os.environ.get("EPOCHS", 3)),
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=Net(),
        args=arguments,
        train_dataset=Samples(256),
        eval_dataset=Samples(64),
        callbacks=[Clock()],
    )
    trainer.train()
    trainer.save_model("final")
