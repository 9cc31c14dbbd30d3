"""A small text classifier trained by Hugging Face's Trainer, tuned by one line.

Train with `python examples/transformers_trainer.py`. Tune with
`python -m autotune run -- python examples/transformers_trainer.py`, which writes best_config.yaml.
Model and texts are made on the spot: nothing is downloaded.
"""

import argparse

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from autotune.integrations.transformers import tune

NUM_WORDS, LONGEST = 1000, 48


class Sentences(Dataset):
    """Sentences of random words, split and padded when they are asked for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        length = int(torch.randint(LONGEST // 4, LONGEST, (), generator=generator))
        words = torch.randint(1, NUM_WORDS, (length,), generator=generator)
        text = " ".join(f"w{word}" for word in words.tolist())
        ids = [int(word[1:]) for word in text.split()]
        padding = [0] * (LONGEST - length)
        return {
            "input_ids": torch.tensor(ids + padding),
            "attention_mask": torch.tensor([1] * length + padding),
            "labels": torch.tensor(int(ids[0] > NUM_WORDS // 2)),
        }


def main() -> None:
    """Train; with the settings that were tuned, if there are any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sentences", type=int, default=6000)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=NUM_WORDS,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
        )
    )
    arguments = TrainingArguments(
        output_dir="out",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=8,
        num_train_epochs=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=10,
        report_to="none",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Sentences(options.sentences),
        eval_dataset=Sentences(200),
    )
    tune(trainer)
    trainer.train()


if __name__ == "__main__":
    main()
