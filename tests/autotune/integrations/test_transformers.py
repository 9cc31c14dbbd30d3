"""Hugging Face's Trainer is tuned by one call, and learns the same as before."""

from pathlib import Path

import pytest

import autotune

from ..commands import trials
from .frameworks import chosen, train, tune, write_script

pytest.importorskip("transformers")

SCRIPT = """
from transformers import Trainer, TrainerCallback, TrainingArguments
from autotune.integrations.transformers import tune

class Own(TrainerCallback):
    def on_step_end(self, arguments, state, control, **_):
        if os.environ.get("OWN_FAILS") and state.global_step == 2:
            raise RuntimeError("a callback of the user's own")

class Losses(Trainer):
    def log(self, logs, *args):
        super().log(logs, *args)
        if "loss" in logs:
            print("loss", logs["loss"])

def main():
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir="out", use_cpu=True, seed=3, per_device_train_batch_size=4,
        gradient_accumulation_steps=4, num_train_epochs=2, logging_steps=1,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        report_to="tensorboard",
    )
    trainer = Losses(
        Net(), arguments, train_dataset=Texts(), eval_dataset=Texts(), callbacks=[Own()]
    )
    config = tune(trainer)
    trainer.train()
    print("trained", config.batch_size, arguments.dataloader_num_workers, trainer.state.global_step)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    write_script(SCRIPT)


def test_a_trainer_is_tuned_by_one_call_and_learns_the_same():
    plain = train()
    assert plain[-1] == "trained 4 0 12"
    for path in sorted(Path("out").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()

    done = tune()
    assert done.returncode == 0, done.stderr
    frame = trials()
    assert set(frame["unit"]) == {"tokens"}
    assert (frame.query("phase == 'search'")["start_mode"] == "fork").any()
    assert chosen().batch_size == 16
    assert chosen().gradient_accumulation_steps == 1
    assert not list(Path("out").iterdir())

    tuned = train()
    assert tuned[-1] == f"trained 16 {chosen().num_workers} 12"
    assert losses(tuned) == pytest.approx(losses(plain), rel=1e-3)


def test_callbacks_of_ones_own_run_in_trials(monkeypatch):
    monkeypatch.setenv("OWN_FAILS", "1")
    done = tune()
    assert done.returncode == 1
    assert "a callback of the user's own" in done.stderr


def losses(lines):
    return [float(line.split()[1]) for line in lines if line.startswith("loss ")]
