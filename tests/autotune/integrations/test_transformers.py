"""Hugging Face's Trainer is tuned by one call, and learns the same as before."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from autotune.errors import ConfigError
from autotune.integrations.transformers import tokens, tune

from ..commands import trials
from .conftest import EnoughError, tree, write_settings
from .frameworks import chosen, run_tuning, write_script

NUM_SAMPLES = 40


class Texts(Dataset):
    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        if index >= NUM_SAMPLES:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(1, 50, (12,), generator=generator)
        mask = torch.ones(12, dtype=torch.long)
        mask[8 + index % 4 :] = 0
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(index % 2)}


class Stream(IterableDataset):
    def __iter__(self):
        return (Texts()[index] for index in range(NUM_SAMPLES))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(self.embedding(input_ids).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Own(TrainerCallback):
    """Asks for everything, and counts."""

    def __init__(self):
        self.num_steps = self.num_epochs = 0
        self.evaluated = []

    def on_step_end(self, args, state, control, **_):
        self.num_steps += 1
        control.should_save = control.should_evaluate = True
        if state.global_step == 3:
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **_):
        self.num_epochs += 1

    def on_evaluate(self, args, state, control, metrics, **_):
        self.evaluated.append(metrics)


def make(kind=Trainer, callbacks=(), dataset=None, **arguments):
    values = {
        "output_dir": "out",
        "use_cpu": True,
        "seed": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
    }
    kind_of_arguments = Seq2SeqTrainingArguments if kind is not Trainer else TrainingArguments
    return kind(
        Net(),
        kind_of_arguments(**{**values, **arguments}),
        train_dataset=dataset or Texts(),
        eval_dataset=Texts(),
        callbacks=list(callbacks),
    )


def history(trainer):
    """Loss and learning rate of each optimizer step."""
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [log["loss"] for log in logs], [log["learning_rate"] for log in logs]


VARIANTS = {
    "plain": {},
    "schedule": {"lr_scheduler_type": "cosine", "warmup_steps": 2, "num_train_epochs": 3},
    "drop_last": {"dataloader_drop_last": True, "per_device_train_batch_size": 4},
    "by_length": {"train_sampling_strategy": "group_by_length"},
    "stream": {"dataset": Stream(), "max_steps": 12},
    "half_an_epoch": {"num_train_epochs": 1.5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tuned_trainer_learns_the_same(variant):
    plain = make(**VARIANTS[variant])
    plain.train()
    workers = {"num_workers": 1, "prefetch_factor": 1, "persistent_workers": False}
    write_settings(batch_size=4, **(workers if variant == "plain" else {}))
    tuned = make(**VARIANTS[variant])
    config = tune(tuned)
    assert config.effective_batch_size == plain.args.train_batch_size * 4
    assert tuned.args.per_device_train_batch_size == 4
    assert tuned.args.dataloader_num_workers == (variant == "plain")
    tuned.train()
    for found, expected in zip(history(tuned), history(plain), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert tuned.state.global_step == plain.state.global_step


def test_the_order_of_batches_is_that_of_the_training_alone():
    settings = {"num_workers": 1, "in_order": False, "multiprocessing_context": "forkserver"}
    write_settings(batch_size=4, **settings)
    trainer = make()
    tune(trainer)
    loader = trainer.get_train_dataloader().base_dataloader
    assert not loader.in_order
    assert loader.multiprocessing_context.get_start_method() == "forkserver"
    assert trainer.get_eval_dataloader().base_dataloader.in_order
    write_settings(batch_size=4)
    trainer = make(dataloader_num_workers=1, dataloader_multiprocessing_context="spawn")
    tune(trainer)
    assert trainer.get_train_dataloader().num_workers == 0


def test_without_a_file_nothing_changes():
    trainer = make()
    arguments = dataclasses.asdict(trainer.args)
    tune(trainer)
    assert dataclasses.asdict(trainer.args) == arguments
    trainer.train()
    plain = make()
    plain.train()
    assert history(trainer) == history(plain)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trial_only_trains_and_goes_on_for_ever(trial, variant):
    values = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    own = Own()
    trainer = make(
        callbacks=[own, EarlyStoppingCallback()],
        **{**values, "eval_on_start": True, **VARIANTS[variant]},
    )
    before = tree()
    seen = trial(100, batch_size=8)
    tune(trainer)
    with pytest.raises(EnoughError):
        trainer.train()
    assert own.num_steps == trainer.state.global_step > 50
    assert own.evaluated == []
    assert tree() == before
    assert seen["units"] is tokens
    assert {len(batch["labels"]) for batch in seen["batches"]} == {8}
    # The schedule is made for the training's true length.
    plain = make(**VARIANTS[variant])
    plain.train()
    expected = history(plain)[1]
    assert history(trainer)[1][: len(expected)] == pytest.approx(expected)


def test_a_training_that_was_left_goes_on_in_a_trial_without_its_data_being_skipped(trial):
    make(save_strategy="epoch").train()
    trainer = make(num_train_epochs=5)
    seen = trial(20, batch_size=4)
    tune(trainer)
    with pytest.raises(EnoughError):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 10 + len(seen["batches"]) // 2


def test_a_training_goes_on_with_other_settings_from_a_checkpoint():
    """The step that it was left at, and the data that follow, are the same."""
    plain = make(save_steps=7, save_strategy="steps")
    plain.train()
    write_settings(batch_size=4)
    tuned = make()
    tune(tuned)
    tuned.train(resume_from_checkpoint="out/checkpoint-7")
    assert history(tuned)[0] == pytest.approx(history(plain)[0], rel=1e-4)


def test_subclasses_are_tuned_as_they_are(trial):
    class Weighted(Seq2SeqTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, self._train_batch_size, drop_last=True)

        def compute_loss(self, model, inputs, return_outputs=False, **more):
            outputs = model(**inputs)
            return (2 * outputs["loss"], outputs) if return_outputs else 2 * outputs["loss"]

    seen = trial(20, batch_size=4)
    trainer = make(Weighted)
    tune(trainer)
    with pytest.raises(EnoughError):
        trainer.train()
    assert {len(batch["labels"]) for batch in seen["batches"]} == {4}


def test_units_are_samples_where_a_model_takes_no_tokens(trial):
    class Images(Net):
        def forward(self, pixels, labels):
            return {"loss": self.head(pixels).sum()}

    seen = trial(5)
    trainer = make(dataset=[{"pixels": torch.ones(16), "labels": 1}] * 20)
    trainer.model = trainer.model_wrapped = Images()
    tune(trainer)
    with pytest.raises(EnoughError):
        trainer.train()
    assert seen["units"] is None


def test_tokens_are_those_that_are_no_padding():
    ids = torch.ones(2, 3)
    assert tokens({"input_ids": ids}) == 6
    assert tokens({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}) == 3
    assert tokens({"input_ids": ids, "attention_mask": torch.ones(2, 1, 3, 3)}) == 6


def test_workers_have_the_collector_that_was_chosen(trial):
    trial(5, num_workers=1, gc="frozen")
    trainer = make()
    tune(trainer)
    assert trainer.get_train_dataloader().worker_init_fn.name == "frozen"


def test_what_cannot_be_tuned_is_refused_in_one_line(trial, monkeypatch):
    trial(5)
    trainer = make()
    monkeypatch.setattr(type(trainer.args), "n_gpu", 2)
    with pytest.raises(ConfigError, match=r"2 GPUs in one process .*: start .* with torchrun"):
        tune(trainer)
    monkeypatch.undo()
    trial(5)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ConfigError, match="DeepSpeed .*: call autotune.load_config before"):
        tune(trainer)


SCRIPT = """
from transformers import Trainer, TrainingArguments
from autotune.integrations.transformers import tune

def main():
    arguments = TrainingArguments(
        output_dir="out", use_cpu=True, per_device_train_batch_size=4,
        gradient_accumulation_steps=4, num_train_epochs=2, logging_steps=1, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, report_to="tensorboard",
    )
    trainer = Trainer(Net(), arguments, train_dataset=Texts(), eval_dataset=Texts())
    tune(trainer)
    trainer.train()

if __name__ == "__main__":
    main()
"""


@pytest.mark.long
def test_a_script_is_tuned_and_trials_leave_nothing(monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "runs")
    write_script(SCRIPT)
    Path("out").mkdir()
    before = tree()
    done = run_tuning()
    assert done.returncode == 0, done.stderr
    frame = trials()
    assert set(frame["unit"]) == {"tokens"}
    assert "fork" in set(frame["start_mode"])
    assert chosen().effective_batch_size == 16
    assert tree() == before
