"""Train a small GPT-2 with Hugging Face's Trainer."""

from __future__ import annotations

import argparse
from typing import Any

from language_model import NUM_IDS, Texts
from loop_options import Stopwatch, choose_device, parse_options
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from autotune.integrations.transformers import tune


class Samples(Dataset[dict[str, Tensor]]):
    """Texts under the names that the model has for them."""

    def __init__(self, length: int) -> None:
        self.texts = Texts(length)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.texts[index][:-1]
        return {"input_ids": ids, "labels": ids}


class Timed(TrainerCallback):
    """Times updates, and stops the training when it has lasted long enough."""

    def __init__(self, options: argparse.Namespace, device: str) -> None:
        self.options, self.device = options, device
        self.watch: Stopwatch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin once the settings are known."""
        # Updates are few: what was prefetched is used up while these warm up.
        self.watch = Stopwatch(self.options, self.device, 0, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count an update."""
        assert self.watch is not None
        samples = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if self.watch.is_over(samples):
            control.should_training_stop = True


def main() -> None:
    """Train."""
    options = parse_options(__doc__)
    device = choose_device(options)
    width, num_layers, length = (32, 1, 32) if options.small else (384, 6, 256)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=NUM_IDS,
            n_positions=length,
            n_embd=width,
            n_layer=num_layers,
            n_head=max(1, width // 64),
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    arguments = TrainingArguments(
        output_dir="out",
        use_cpu=device == "cpu",
        bf16=device != "cpu",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=16,
        num_train_epochs=options.epochs,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    timed = Timed(options, device)
    trainer = Trainer(model, arguments, train_dataset=Samples(length), callbacks=[timed])
    tune(trainer)
    trainer.train()


if __name__ == "__main__":
    main()
