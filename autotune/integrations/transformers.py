"""Hugging Face's Trainer: `tune(trainer)` between its constructor and `trainer.train()`."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from typing import Any

import autotune
from autotune.collector import DEFAULT, CollectorInit
from autotune.config import ThroughputConfig
from autotune.errors import ConfigError
from autotune.instrument.loader_facts import is_dataloader
from autotune.instrument.ranks import find_place
from autotune.instrument.swap import set_worker_options
from autotune.worker_start import DEFAULT as PYTHONS_OWN

_CONTEXT = "dataloader_multiprocessing_context"
# Callbacks of these classes train; all others that come with transformers report, save and stop.
_KEPT = ("TrainerCallback", "DefaultFlowCallback", "ExportableState")


def tune(
    trainer: Any,  # noqa: ANN401
    path: str | os.PathLike[str] | None = "best_config.yaml",
) -> ThroughputConfig:
    """Let `trainer` train with the settings in the file, or be measured by `autotune run`.

    Batch size and gradient accumulation per device, the four arguments of the data loader, threads
    and the garbage collector are set. The number of samples per optimizer step stays what the
    trainer's arguments ask for, so that the model learns the same.

    In a trial the training goes on for as long as it is measured: nothing is evaluated, saved,
    pushed or reported, and of the callbacks only your own run. Throughput is in tokens per second,
    without padding, where the model's `forward` takes `input_ids`.

    Args:
        trainer: A Trainer, or an instance of a subclass; its `train()` was not called yet.
        path: A `best_config.yaml`; where there is none, the trainer's own arguments are used.

    Returns:
        The settings, which are in the trainer's arguments now.

    Raises:
        BadInputError: See `autotune.load_config`.
        ConfigError: The trainer's arguments contradict each other; in a trial also where DeepSpeed
            has read them before, or where each batch is split over several GPUs (DataParallel).
    """
    if autotune.is_trial():
        _check(trainer)
        # `train` begins with this, which takes half a second: once, for all trials that are forked.
        gc.collect()
    default = _settings_of(trainer)
    # Of all ranks together.
    effective = default.effective_batch_size * find_place().world_size
    config = autotune.load_config(path, default=default, effective_batch_size=effective)
    _set(trainer, config)
    make_loader = trainer.get_train_dataloader

    def get_train_dataloader() -> Any:  # noqa: ANN401
        loader = make_loader()
        _set_up_workers(loader, config, default)
        if not autotune.is_trial():
            return loader
        return autotune.steps(loader, units=tokens if _reads_tokens(trainer.model) else None)

    trainer.get_train_dataloader = get_train_dataloader
    if autotune.is_trial():
        _only_train(trainer)
    return config


def tokens(batch: Any) -> Any:  # noqa: ANN401
    """Tokens in a batch that are no padding; a tensor, so that no GPU is waited for."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    # A mask of another shape tells who attends to whom.
    return mask.sum() if getattr(mask, "shape", None) == ids.shape else ids.numel()


def _check(trainer: Any) -> None:  # noqa: ANN401
    if trainer.args.n_gpu > 1:
        raise ConfigError(
            f"the Trainer would use {trainer.args.n_gpu} GPUs in one process (DataParallel), which "
            "cannot be tuned: start the command with torchrun, or set CUDA_VISIBLE_DEVICES"
        )
    if trainer.is_deepspeed_enabled:
        raise ConfigError(
            "the Trainer's arguments were handed to DeepSpeed before they could be tuned: call "
            "autotune.load_config before TrainingArguments is made, and give it the settings"
        )


def _settings_of(trainer: Any) -> ThroughputConfig:  # noqa: ANN401
    arguments = trainer.args
    workers = arguments.dataloader_num_workers
    return ThroughputConfig(
        batch_size=arguments.per_device_train_batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        num_workers=workers,
        prefetch_factor=arguments.dataloader_prefetch_factor if workers else None,
        persistent_workers=bool(workers and arguments.dataloader_persistent_workers),
        pin_memory=arguments.dataloader_pin_memory,
        # These two only newer versions have.
        in_order=not workers or getattr(arguments, "dataloader_in_order", True),
        multiprocessing_context=(workers and getattr(arguments, _CONTEXT, None)) or PYTHONS_OWN,
    )


def _set(trainer: Any, config: ThroughputConfig) -> None:  # noqa: ANN401
    arguments = trainer.args
    arguments.per_device_train_batch_size = config.batch_size
    # The constructor has taken its own copy of it.
    trainer._train_batch_size = arguments.train_batch_size
    arguments.gradient_accumulation_steps = config.gradient_accumulation_steps
    arguments.dataloader_num_workers = config.num_workers
    arguments.dataloader_prefetch_factor = config.prefetch_factor
    arguments.dataloader_persistent_workers = bool(config.persistent_workers)
    arguments.dataloader_pin_memory = config.pin_memory
    if hasattr(arguments, _CONTEXT) and not config.num_workers:
        # torch refuses one where there is nothing to start.
        setattr(arguments, _CONTEXT, None)


def _only_train(trainer: Any) -> None:  # noqa: ANN401
    """Have the trainer do nothing but train, and go on for ever."""
    from transformers import TrainerCallback

    class OnlyTrain(TrainerCallback):
        """Takes back what other callbacks ask for."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            # Now, when the schedule has been made for the training's true length.
            state.max_steps = sys.maxsize

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            control.should_evaluate = control.should_save = control.should_training_stop = False

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            self.on_step_end(args, state, control)

    trainer.accelerator.free_memory = lambda *objects: objects
    trainer.args.eval_on_start = False
    # Memory that runs out is to end the trial, and not to halve its batches.
    trainer.args.auto_find_batch_size = False
    # Batches before the one at which a training was left need not be gone through.
    trainer.args.ignore_data_skip = True
    for callback in list(trainer.callback_handler.callbacks):
        if _is_from_transformers(type(callback)):
            trainer.remove_callback(callback)
    trainer.add_callback(OnlyTrain())
    initial_values = trainer.set_initial_training_values

    def set_initial_training_values(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        _, *others = initial_values(*args, **kwargs)
        return (sys.maxsize, *others)  # epochs first

    trainer.set_initial_training_values = set_initial_training_values


def _is_from_transformers(kind: type) -> bool:
    """Whether a callback does what one that comes with transformers does."""
    return any(
        base.__module__.startswith("transformers.") and base.__name__ not in _KEPT
        for base in kind.__mro__
    )


def _set_up_workers(
    loader: Any,  # noqa: ANN401
    config: ThroughputConfig,
    default: ThroughputConfig,
) -> None:
    """What `ThroughputConfig.dataloader` does for workers whose loader the trainer makes.

    How these are started and read stays as the loader has it, unless `config` says otherwise than
    the trainer's arguments.

    The order is not among the trainer's arguments then: these hold for evaluation and prediction,
    too, whose results are to stay in the order of their data.
    """
    # A prepared loader hands the work to one that it keeps.
    made = getattr(loader, "base_dataloader", loader)
    if config.num_workers and config.gc != DEFAULT and hasattr(made, "worker_init_fn"):
        made.worker_init_fn = CollectorInit(config.gc, made.worker_init_fn)
    if is_dataloader(made) and config.worker_options() != default.worker_options():
        set_worker_options(made, config)


def _reads_tokens(model: Any) -> bool:  # noqa: ANN401
    """Whether batches have `input_ids`, by Trainer's own rule: what `forward` takes is kept."""
    # An adapter (PEFT) takes anything, and hands it on.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "input_ids" in inspect.signature(inner.forward).parameters
