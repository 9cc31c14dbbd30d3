"""Lightning: `tune(trainer, model, ...)` before `trainer.fit(...)`.

For `lightning` and `pytorch_lightning` alike: which of the two is used, the trainer's class tells.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import autotune
from autotune.errors import ConfigError
from autotune.integrations.loaders import rebuilt, settings_of

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from autotune.config import ThroughputConfig

# Lightning's own callbacks that write, report or end the training; all others run in trials, too.
_NOT_IN_TRIALS = (
    "Checkpoint",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "LearningRateMonitor",
    "ModelSummary",
    "ProgressBar",
    "ThroughputMonitor",
    "Timer",
)


def tune(
    trainer: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    train_dataloaders: DataLoader[Any] | None = None,
    *,
    datamodule: Any = None,  # noqa: ANN401
    path: str | os.PathLike[str] | None = "best_config.yaml",
) -> Any:  # noqa: ANN401
    """Let `trainer.fit` train with the settings in the file, or be measured by `autotune run`.

    The loader's settings, gradient accumulation, threads and the garbage collector are set. The
    number of samples per optimizer step stays what loader and trainer ask for, so that the model
    learns the same.

    Where the training data come from a DataModule or from the model, `prepare_data` and
    `setup("fit")` are called here, and not again when the training begins. In a trial the training
    goes on for as long as it is measured; nothing is validated, logged or saved, and of Lightning's
    callbacks those that write, report or stop are left out.

    Args:
        trainer: A Lightning Trainer whose `fit` was not called yet.
        model: The LightningModule.
        train_dataloaders: The loader, where it is given to `trainer.fit`.
        datamodule: The LightningDataModule, where that has the data.
        path: A `best_config.yaml`; where there is none, the settings of loader and trainer are
            used.

    Returns:
        The loader to give to `trainer.fit` instead of `train_dataloaders`; None where there was
        none.

    Raises:
        BadInputError: See `autotune.load_config`.
        ConfigError: The loader is not one DataLoader, or Lightning would start the processes of
            other devices by itself while it is measured.
    """
    if autotune.is_trial():
        _check_processes(trainer)
    if train_dataloaders is not None:
        config = _load(trainer, model, train_dataloaders, path)
        return _measured(trainer, train_dataloaders, config)
    owner = model if datamodule is None else datamodule
    owner.trainer = trainer
    _call_once(owner, "prepare_data", wanted=trainer.local_rank == 0)
    _call_once(owner, "setup", "fit")
    make_loader = owner.train_dataloader
    config = _load(trainer, model, make_loader(), path)

    @functools.wraps(make_loader)
    def train_dataloader() -> Any:  # noqa: ANN401
        return _measured(trainer, make_loader(), config)

    owner.train_dataloader = train_dataloader
    return None


def _load(
    trainer: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    loader: DataLoader[Any],
    path: str | os.PathLike[str] | None,
) -> ThroughputConfig:
    # A model that calls its optimizer by itself accumulates as it likes.
    steps = trainer.accumulate_grad_batches if model.automatic_optimization else 1
    default = dataclasses.replace(settings_of(loader), gradient_accumulation_steps=steps)
    config = autotune.load_config(
        path, default=default, effective_batch_size=default.effective_batch_size
    )
    if model.automatic_optimization:
        trainer.accumulate_grad_batches = config.gradient_accumulation_steps
    if autotune.is_trial():
        _only_train(trainer)
    return config


def _measured(
    trainer: Any,  # noqa: ANN401
    loader: DataLoader[Any],
    config: ThroughputConfig,
) -> Any:  # noqa: ANN401
    loader = rebuilt(loader, config)
    return autotune.steps(loader) if autotune.is_trial() else loader


def _call_once(owner: Any, name: str, *arguments: str, wanted: bool = True) -> None:  # noqa: ANN401
    """Call a hook now, and let Lightning's own call of it do nothing."""
    hook: Callable[..., Any] = getattr(owner, name)
    if wanted:
        hook(*arguments)

    @functools.wraps(hook)
    def done(*_: Any, **__: Any) -> None:  # noqa: ANN401
        setattr(owner, name, hook)

    setattr(owner, name, done)


def _check_processes(trainer: Any) -> None:  # noqa: ANN401
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size > 1 and not getattr(environment, "creates_processes_externally", True):
        raise ConfigError(
            f"Lightning would start the processes of its {trainer.world_size} devices by itself, "
            "which cannot be measured: start the command with torchrun"
        )


def _only_train(trainer: Any) -> None:  # noqa: ANN401
    # `lightning.pytorch` or `pytorch_lightning`: their classes are not the same.
    package = type(trainer).__module__.partition(".trainer")[0]
    callbacks = importlib.import_module(f"{package}.callbacks")
    logger = importlib.import_module(f"{package}.loggers.logger").DummyLogger
    kinds = tuple(getattr(callbacks, name) for name in _NOT_IN_TRIALS if hasattr(callbacks, name))

    class Endless(callbacks.Callback):  # type: ignore[misc, name-defined]
        """Lets the training go on; not before its schedules were made for its true length."""

        def on_train_start(self, trainer: Any, _: Any) -> None:  # noqa: ANN401
            trainer.fit_loop.max_epochs = -1
            trainer.fit_loop.epoch_loop.max_steps = -1
            for scheduler in trainer.lr_scheduler_configs:
                # What it monitors may come from a validation.
                scheduler.strict = False

    trainer.loggers = [logger()]
    trainer.limit_val_batches = 0
    trainer.num_sanity_val_steps = 0
    kept = [callback for callback in trainer.callbacks if not isinstance(callback, kinds)]
    trainer.callbacks = [*kept, Endless()]
