"""Lightning is tuned by one call, and learns the same as before."""

from pathlib import Path

import pytest

from ..commands import trials
from .frameworks import chosen, train, tune, write_script

pytest.importorskip("lightning")

SCRIPT = """
import {package} as L
from autotune.integrations.lightning import tune

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def training_step(self, batch, index):
        loss = self.net(**batch)["loss"]
        self.log("loss", loss)
        print("loss", loss.item())
        return loss
    def validation_step(self, batch, index):
        self.log("validation", self.net(**batch)["loss"])
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {{"optimizer": optimizer,
                "lr_scheduler": {{"scheduler": plateau, "monitor": "validation"}}}}

class Own(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if os.environ.get("OWN_FAILS") and trainer.global_step == 2:
            raise RuntimeError("a callback of the user's own")

class Data(L.LightningDataModule):
    def setup(self, stage):
        self.texts = Texts()
        print("set up", stage)
    def train_dataloader(self):
        return DataLoader(self.texts, batch_size=4, shuffle=True)
    def val_dataloader(self):
        return DataLoader(self.texts, batch_size=4)

def main():
    L.seed_everything(3)
    model = Model()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=4, default_root_dir="out",
        callbacks=[Own()], enable_progress_bar=False{arguments},
    )
    {call}
    print("trained", trainer.train_dataloader.batch_size, trainer.train_dataloader.num_workers,
          trainer.global_step)

if __name__ == "__main__":
    main()
"""
WITH_DATAMODULE = """
    data = Data()
    tune(trainer, model, datamodule=data)
    trainer.fit(model, datamodule=data)
"""
WITH_LOADER = """
    loader = tune(trainer, model, DataLoader(Texts(), batch_size=4, shuffle=True))
    trainer.fit(model, loader)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_for(call, package="lightning", arguments=""):
        write_script(
            SCRIPT.format(package=package, call=call.strip(), arguments=arguments)
        )

    return write_for


@pytest.mark.parametrize(
    ("package", "call"), [("lightning", WITH_DATAMODULE), ("pytorch_lightning", WITH_LOADER)]
)
def test_lightning_is_tuned_by_one_call_and_learns_the_same(write, package, call):
    pytest.importorskip(package)
    write(call, package)
    plain = train()
    assert plain[-1] == "trained 4 0 12"
    assert plain.count("set up fit") == (call is WITH_DATAMODULE)
    before = sorted(Path("out").rglob("*"))

    done = tune()
    assert done.returncode == 0, done.stderr
    frame = trials()
    assert (frame.query("phase == 'search'")["start_mode"] == "fork").any()
    assert chosen().batch_size == 16
    assert sorted(Path("out").rglob("*")) == before

    tuned = train()
    assert tuned[-1] == f"trained 16 {chosen().num_workers} 12"
    assert means(losses(tuned), 1) == pytest.approx(means(losses(plain), 4), rel=1e-3)


def test_callbacks_of_ones_own_run_in_trials(write, monkeypatch):
    write(WITH_LOADER)
    monkeypatch.setenv("OWN_FAILS", "1")
    done = tune()
    assert done.returncode == 1
    assert "a callback of the user's own" in done.stderr


def test_processes_that_lightning_would_start_are_refused_in_one_line(write):
    write(WITH_LOADER, arguments=', devices=2, strategy="ddp"')
    done = tune()
    assert done.returncode == 1
    assert "Lightning would start the processes of its 2 devices by itself" in done.stderr
    assert "torchrun" in done.stderr


def losses(lines):
    return [float(line.split()[1]) for line in lines if line.startswith("loss ")]


def means(values, number):
    """The means of so many values each."""
    return [sum(values[i : i + number]) / number for i in range(0, len(values), number)]
