"""Lightning: `tune(trainer, model, ...)` before `trainer.fit(...)`.

For `lightning` and `pytorch_lightning` alike: which of the two is used, the trainer's class tells.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autotune
from autotune.config import ThroughputConfig
from autotune.errors import ConfigError
from autotune.instrument.ranks import find_place
from autotune.integrations.loaders import rebuilt, settings_of
from autotune.settings_files import settings_exist

# Lightning's own callbacks that write, report, search or end the training; all others run in
# trials, too. Some only newer versions know.
_NOT_IN_TRIALS = (
    "BatchSizeFinder",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelSummary",
    "ProgressBar",
    "SpikeDetection",
    "ThroughputMonitor",
    "Timer",
)


def tune(
    trainer: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    train_dataloaders: Any = None,  # noqa: ANN401
    *,
    datamodule: Any = None,  # noqa: ANN401
    path: str | os.PathLike[str] | None = "best_config.yaml",
) -> Any:  # noqa: ANN401
    """Let `trainer.fit` train with the settings in the file, or be measured by `autotune run`.

    The loader's settings, gradient accumulation, threads and the garbage collector are set. The
    number of samples per optimizer step stays what loader and trainer ask for, so that the model
    learns the same. Limits in batches (`limit_train_batches`, `overfit_batches`,
    `val_check_interval`) are set to as many samples as before. The batch size stays where the model
    steps its optimizers by itself, where a GradientAccumulationScheduler is used, and where the
    loader has a `batch_sampler`.

    In a trial and with a file, `prepare_data` and `setup("fit")` of what has the data are called
    here, and not again when the training begins. In a trial the training goes on for as long as it
    is measured; nothing is validated, logged or saved, and of Lightning's callbacks those that
    write, report or stop are left out.

    Args:
        trainer: A Lightning Trainer whose `fit` was not called yet.
        model: The LightningModule.
        train_dataloaders: The DataLoader, where it is given to `trainer.fit`; or the
            LightningDataModule.
        datamodule: The LightningDataModule, where that has the data.
        path: A `best_config.yaml`; where there is none, nothing is changed.

    Returns:
        What to give to `trainer.fit` as its `train_dataloaders`.

    Raises:
        BadInputError: See `autotune.load_config`.
        ConfigError: The training data do not come from one DataLoader, or, in a trial, Lightning
            would start the processes of other devices by itself.
    """
    if not autotune.is_trial() and (path is None or not settings_exist(Path(path))):
        return train_dataloaders
    if autotune.is_trial():
        _check_processes(trainer)
    if hasattr(train_dataloaders, "train_dataloader"):
        datamodule = train_dataloaders
    elif train_dataloaders is not None:
        config = _load(trainer, model, train_dataloaders, path)
        return _rebuilt(trainer, train_dataloaders, config)
    owner = model if datamodule is None else datamodule
    _set_up(trainer, owner)
    make_loader = owner.train_dataloader
    config = _load(trainer, model, make_loader(), path)
    owner.train_dataloader = functools.partial(_make_rebuilt, trainer, make_loader, config)
    return train_dataloaders


def _make_rebuilt(
    trainer: Any,  # noqa: ANN401
    make_loader: Callable[[], Any],
    config: ThroughputConfig,
) -> Any:  # noqa: ANN401
    return _rebuilt(trainer, make_loader(), config)


def _rebuilt(trainer: Any, loader: Any, config: ThroughputConfig) -> Any:  # noqa: ANN401
    # `seed_everything(..., workers=True)` seeds workers only where nothing else sets them up.
    if os.environ.get("PL_SEED_WORKERS") == "1" and loader.worker_init_fn is None:
        is_joint = type(trainer).__module__.startswith("lightning.")
        fabric = "lightning.fabric" if is_joint else "lightning_fabric"
        seed = importlib.import_module(f"{fabric}.utilities.seed").pl_worker_init_function
        loader.worker_init_fn = functools.partial(seed, rank=trainer.global_rank)
    return rebuilt(loader, config)


def _load(
    trainer: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    loader: Any,  # noqa: ANN401
    path: str | os.PathLike[str] | None,
) -> ThroughputConfig:
    """The settings to make the loader with; the trainer is set up for them."""
    own = settings_of(loader)
    accumulates = model.automatic_optimization and not any(
        type(callback).__name__ == "GradientAccumulationScheduler" for callback in trainer.callbacks
    )
    steps = trainer.accumulate_grad_batches if accumulates else 1
    default = dataclasses.replace(own, gradient_accumulation_steps=steps)
    # Of all ranks together.
    effective = default.effective_batch_size * find_place().world_size
    config = autotune.load_config(path, default=default, effective_batch_size=effective)
    if not accumulates:
        config = dataclasses.replace(config, batch_size=own.batch_size)
    elif loader.batch_size is not None:
        trainer.accumulate_grad_batches = config.gradient_accumulation_steps
        _rescale_limits(trainer, own.batch_size / config.batch_size)
    if autotune.is_trial():
        _only_train(trainer, model)
    return config


def _rescale_limits(trainer: Any, factor: float) -> None:  # noqa: ANN401
    """Let limits that count batches stand for as many samples as before; shares stay."""
    for name in ("limit_train_batches", "val_check_interval"):
        limit = getattr(trainer, name)
        if isinstance(limit, int):
            setattr(trainer, name, math.ceil(limit * factor))


def _set_up(trainer: Any, owner: Any) -> None:  # noqa: ANN401
    """Have what owns the data ready to make its loader."""
    if trainer.world_size > 1 and _has_launcher(trainer):
        # One rank prepares the data, and the others wait for it.
        trainer.strategy.setup_environment()
    owner.trainer = trainer
    prepares = trainer.local_rank == 0 and (owner.prepare_data_per_node or trainer.node_rank == 0)
    _call_once(owner, "prepare_data", wanted=prepares)
    trainer.strategy.barrier()
    _call_once(owner, "setup", "fit")


def _call_once(owner: Any, name: str, *arguments: str, wanted: bool = True) -> None:  # noqa: ANN401
    """Call a hook now, and let Lightning's own call of it do nothing."""
    hook: Callable[..., Any] = getattr(owner, name)
    if wanted:
        hook(*arguments)
    setattr(owner, name, functools.partial(_give_back, owner, name, hook))


def _give_back(owner: Any, name: str, hook: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401
    setattr(owner, name, hook)


def _has_launcher(trainer: Any) -> bool:  # noqa: ANN401
    """Whether something else than Lightning starts the processes of other devices."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return bool(getattr(environment, "creates_processes_externally", True))


def _check_processes(trainer: Any) -> None:  # noqa: ANN401
    if trainer.world_size > 1 and not _has_launcher(trainer):
        raise ConfigError(
            f"Lightning would start the processes of its {trainer.world_size} devices by itself, "
            "which cannot be measured: start the command with torchrun, or set devices=1"
        )


def _only_train(trainer: Any, model: Any) -> None:  # noqa: ANN401
    """Have the trainer do nothing but train, and go on for ever."""
    # `lightning.pytorch` or `pytorch_lightning`: their classes are not the same.
    package = type(trainer).__module__.partition(".trainer")[0]
    callbacks = importlib.import_module(f"{package}.callbacks")
    logger = importlib.import_module(f"{package}.loggers.logger").DummyLogger
    left_out = tuple(
        getattr(callbacks, name) for name in _NOT_IN_TRIALS if hasattr(callbacks, name)
    )

    def kept(found: Any) -> list[Any]:  # noqa: ANN401
        found = [found] if isinstance(found, callbacks.Callback) else found
        return [callback for callback in found if not isinstance(callback, left_out)]

    class Endless(callbacks.Callback):  # type: ignore[misc, name-defined]
        """Lets the training go on."""

        def on_train_start(self, trainer: Any, _: Any) -> None:  # noqa: ANN401
            # Now, when the schedules have been made for the training's true length.
            trainer.fit_loop.max_epochs = -1
            trainer.fit_loop.epoch_loop.max_steps = -1
            for scheduler in trainer.lr_scheduler_configs:
                # What it monitors may come from a validation.
                scheduler.strict = False

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:  # noqa: ANN401
            trainer.should_stop = False

        on_train_epoch_end = on_train_batch_end

    trainer.loggers = [logger()]
    trainer.limit_val_batches = 0
    trainer.num_sanity_val_steps = 0
    trainer.callbacks = [*kept(trainer.callbacks), Endless()]
    configure = model.configure_callbacks
    model.configure_callbacks = lambda: kept(configure())
    # Once Lightning has given the loader what ranks need.
    process = trainer.strategy.process_dataloader
    trainer.strategy.process_dataloader = lambda loader: autotune.steps(process(loader))
