"""Lightning is tuned by one call, and learns the same as before."""

import importlib
import sys

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from autotune import ThroughputConfig
from autotune.blocks import BlockMode, BlockRequest
from autotune.errors import ConfigError
from autotune.integrations.lightning import tune
from autotune.measurement import StartMode

from .conftest import EnoughError, tree, write_settings
from .frameworks import write_script

# Lightning gives advice by warnings, and calls what torch is about to drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)
PACKAGES = ("lightning", "pytorch_lightning")
SAMPLES = [(torch.full((3,), index / 40), torch.tensor([index % 3.0])) for index in range(40)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(SAMPLES)


def module(package="lightning", *, manual=False, monitor="loss"):
    """A LightningModule, made anew, that notes its losses."""
    base = importlib.import_module(package).LightningModule

    class Model(base):
        automatic_optimization = not manual

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 1)
            self.losses, self.validated, self.epochs = [], 0, 0

        def training_step(self, batch, index):
            loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
            self.losses.append(loss.item())
            self.log("loss", loss)
            if manual:
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                return None
            return loss

        def validation_step(self, batch, index):
            self.validated += 1
            self.log("validation", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

        def on_train_epoch_end(self):
            self.epochs += 1

        def configure_optimizers(self):
            if manual:
                return [torch.optim.SGD([one], 0.1) for one in self.layer.parameters()]
            optimizer = torch.optim.SGD(self.layer.parameters(), 0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": monitor},
            }

    return Model()


def data(package="lightning", *, shuffle=False):
    """A LightningDataModule that notes what is called."""
    base = importlib.import_module(package).LightningDataModule

    class Data(base):
        def __init__(self):
            super().__init__()
            self.called = []

        def prepare_data(self):
            self.called.append("prepare_data")

        def setup(self, stage):
            self.called.append(f"setup {stage}")
            self.samples = SAMPLES

        def train_dataloader(self):
            return DataLoader(self.samples, batch_size=2, shuffle=shuffle)

        def val_dataloader(self):
            return DataLoader(self.samples, batch_size=2)

    return Data()


def trainer_of(package="lightning", **arguments):
    values = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "accumulate_grad_batches": 4,
        "default_root_dir": "out",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return importlib.import_module(package).Trainer(**{**values, **arguments})


def per_step(losses, number):
    """The mean loss of each optimizer step of so many batches."""
    return [sum(losses[i : i + number]) / number for i in range(0, len(losses), number)]


VARIANTS = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.1},
    "limited": {"limit_train_batches": 8, "val_check_interval": 4},
    "overfit": {"overfit_batches": 8},
    "steps": {"max_steps": 7},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tuned_training_learns_the_same(variant):
    plain = module(monitor="validation")
    trainer_of(**VARIANTS[variant]).fit(plain, datamodule=data())
    write_settings(batch_size=4)
    tuned, datamodule = module(monitor="validation"), data()
    trainer = trainer_of(**VARIANTS[variant])
    tune(trainer, tuned, datamodule=datamodule)
    assert trainer.accumulate_grad_batches == 2
    trainer.fit(tuned, datamodule=datamodule)
    assert datamodule.called == ["prepare_data", "setup fit"]
    assert trainer.train_dataloader.batch_size == 4
    assert per_step(tuned.losses, 2) == pytest.approx(per_step(plain.losses, 4), rel=1e-4)
    assert tuned.validated == plain.validated


@pytest.mark.parametrize("package", PACKAGES)
def test_a_loader_may_come_from_anywhere(package):
    write_settings(batch_size=4, num_workers=1, persistent_workers=False)
    model, trainer = module(package), trainer_of(package, max_epochs=1)
    loader = tune(trainer, model, DataLoader(SAMPLES, batch_size=2, shuffle=True))
    trainer.fit(model, loader)
    assert trainer.train_dataloader.num_workers == 1
    assert len(model.losses) == 10

    model, trainer = module(package), trainer_of(package, max_epochs=1)
    model.train_dataloader = lambda: DataLoader(SAMPLES, batch_size=2)
    assert tune(trainer, model) is None
    trainer.fit(model)
    assert len(model.losses) == 10

    # As `trainer.fit` takes it, too.
    model, datamodule, trainer = module(package), data(package), trainer_of(package, max_epochs=1)
    trainer.fit(model, tune(trainer, model, datamodule))
    assert len(model.losses) == 10


def test_without_a_file_nothing_is_touched():
    model, datamodule, trainer = module(), data(), trainer_of()
    loader = DataLoader(SAMPLES)
    assert tune(trainer, model, loader) is loader
    before = dict(vars(datamodule))
    tune(trainer, model, datamodule=datamodule)
    assert vars(datamodule) == before


@pytest.mark.parametrize("package", PACKAGES)
def test_a_trial_only_trains_and_goes_on_for_ever(trial, package):
    library = importlib.import_module(package)

    class Own(library.Callback):
        num_batches = 0

        def on_train_batch_end(self, trainer, *_):
            self.num_batches += 1
            trainer.should_stop = True

    checkpoint = library.pytorch if package == "lightning" else library
    own = Own()
    callbacks = [own, checkpoint.callbacks.EarlyStopping("validation")]
    model, datamodule = module(package, monitor="validation"), data(package)
    model.configure_callbacks = lambda: checkpoint.callbacks.ModelCheckpoint(every_n_train_steps=1)
    trainer = trainer_of(
        package,
        callbacks=callbacks,
        logger=True,
        enable_checkpointing=True,
        enable_progress_bar=True,
        num_sanity_val_steps=2,
        max_time={"seconds": 0},
        val_check_interval=3,
        log_every_n_steps=1,
    )
    seen = trial(100, batch_size=8)
    tune(trainer, model, datamodule=datamodule)
    before = tree()
    with pytest.raises(EnoughError):
        trainer.fit(model, datamodule=datamodule)
    assert own.num_batches == 100
    assert model.validated == 0
    assert model.epochs == 100 // 5
    assert {len(batch[0]) for batch in seen["batches"]} == {8}
    assert tree() == before


def test_a_stream_is_measured(trial):
    seen = trial(50, batch_size=4)
    model, trainer = module(), trainer_of(max_epochs=-1, max_steps=5)
    loader = tune(trainer, model, DataLoader(Stream(), batch_size=2))
    with pytest.raises(EnoughError):
        trainer.fit(model, loader)
    assert len(seen["batches"]) == 50
    assert trainer.global_step > 5


def test_a_model_that_steps_by_itself_keeps_its_batches():
    write_settings(batch_size=4)
    model, trainer = module(manual=True), trainer_of(accumulate_grad_batches=1)
    loader = tune(trainer, model, DataLoader(SAMPLES, batch_size=8))
    trainer.fit(model, loader)
    assert trainer.train_dataloader.batch_size == 8


def test_a_scheduled_accumulation_keeps_its_batches():
    write_settings(batch_size=4)
    scheduler = lightning.pytorch.callbacks.GradientAccumulationScheduler({0: 2, 1: 4})
    model, trainer = module(), trainer_of(accumulate_grad_batches=1, callbacks=[scheduler])
    loader = tune(trainer, model, DataLoader(SAMPLES, batch_size=8))
    trainer.fit(model, loader)
    assert trainer.train_dataloader.batch_size == 8
    assert trainer.accumulate_grad_batches == 4


def test_batches_of_a_batch_sampler_stay():
    write_settings(batch_size=4)
    sampler = BatchSampler(SequentialSampler(SAMPLES), 8, drop_last=False)
    model, trainer = module(), trainer_of(limit_train_batches=3)
    loader = tune(trainer, model, DataLoader(SAMPLES, batch_sampler=sampler))
    trainer.fit(model, loader)
    assert len(model.losses) == 6
    assert trainer.accumulate_grad_batches == 4


@pytest.mark.parametrize("package", PACKAGES)
def test_workers_are_seeded_as_lightning_does(trial, package, monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    trial(5, num_workers=1, gc="frozen")
    loader = tune(trainer_of(package), module(package), DataLoader(SAMPLES, batch_size=2))
    assert loader.worker_init_fn.name == "frozen"
    assert loader.worker_init_fn.first.func.__name__ == "pl_worker_init_function"


def test_several_loaders_are_refused_in_one_line(trial):
    trial(5)
    with pytest.raises(ConfigError, match="from one torch.utils.data.DataLoader, not from dict"):
        tune(trainer_of(), module(), {"a": DataLoader(SAMPLES), "b": DataLoader(SAMPLES)})


def test_processes_that_lightning_would_start_are_refused_in_one_line(trial):
    trial(5)
    with pytest.raises(ConfigError, match="processes of its 2 devices by itself.* with torchrun"):
        tune(trainer_of(devices=2, strategy="ddp"), module(), DataLoader(SAMPLES))


SCRIPT = """
import lightning as L
from autotune.integrations.lightning import tune

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def training_step(self, batch, index):
        loss = self.net(**batch)["loss"]
        self.log("loss", loss)
        return loss
    def validation_step(self, batch, index):
        self.log("validation", self.net(**batch)["loss"])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(L.LightningDataModule):
    def setup(self, stage):
        self.texts = Texts()
    def train_dataloader(self):
        return DataLoader(self.texts, batch_size=4, shuffle=True)
    def val_dataloader(self):
        return DataLoader(self.texts, batch_size=4)

def main():
    trainer = L.Trainer(
        accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", 1)), max_epochs=2,
        accumulate_grad_batches=4, default_root_dir="out",
    )
    model, data = Model(), Data()
    tune(trainer, model, datamodule=data)
    trainer.fit(model, datamodule=data)

if __name__ == "__main__":
    main()
"""


def test_a_script_is_forked_and_trials_leave_nothing(start_runner):
    script = write_script(SCRIPT)
    before = tree()
    runner = start_runner((sys.executable, str(script)))
    config = ThroughputConfig(batch_size=8, gradient_accumulation_steps=2, num_workers=1)
    with runner.start(config, StartMode.FORK) as trial:
        # Two windows of two optimizer steps each, however slow the machine is.
        settling = BlockRequest(min_s=0.0, multiple_of=4, settle_s=20.0)
        assert trial.measure(settling, deadline_s=30).settling.steps_per_update == 2
        for mode in (BlockMode.COMPUTE, BlockMode.LOAD):
            assert trial.measure(BlockRequest(min_s=0.05, mode=mode), deadline_s=30).blocks
    assert trial.mode is StartMode.FORK
    assert tree() == before


def test_ranks_share_out_the_samples_as_in_training(start_runner):
    script = write_script(SCRIPT)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    runner = start_runner((sys.executable, *launcher, str(script)))
    with runner.start_default() as trial:
        assert trial.measure(BlockRequest(min_s=0.05, settle_s=0.1), deadline_s=30).blocks
        # Of 24 batches.
        assert trial.facts.steps_per_epoch == 12
