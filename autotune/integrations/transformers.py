"""Hugging Face's Trainer: `tune(trainer)` between its constructor and `trainer.train()`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import autotune
from autotune.collector import DEFAULT, CollectorInit
from autotune.config import ThroughputConfig
from autotune.errors import ConfigError

if TYPE_CHECKING:
    from transformers import Trainer

# More optimizer steps than a trial ever takes.
_ENDLESS_STEPS = 10**9
# Of the callbacks that come with transformers, what a trial needs: the others report, save and stop.
_FLOW_CALLBACK = "DefaultFlowCallback"


def tune(
    trainer: Trainer, path: str | os.PathLike[str] | None = "best_config.yaml"
) -> ThroughputConfig:
    """Let `trainer` train with the settings in the file, or be measured by `autotune run`.

    Batch size and gradient accumulation per device, the four arguments of the data loader, threads
    and the garbage collector are set. The number of samples per optimizer step stays what the
    trainer's arguments ask for, so that it learns the same.

    In a trial the training goes on for as long as it is measured: nothing is evaluated, saved,
    pushed or reported, and of the callbacks only your own run. Throughput is in tokens per second,
    without padding, where batches have `input_ids`.

    Args:
        trainer: Its `train()` was not called yet.
        path: A `best_config.yaml`; where there is none, the trainer's own arguments are used.

    Returns:
        The settings, which are in the trainer's arguments now.

    Raises:
        BadInputError: See `autotune.load_config`.
        ConfigError: The trainer would split each batch over several GPUs (DataParallel), or its
            arguments contradict each other.
    """
    arguments = trainer.args
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"the Trainer would use {arguments.n_gpu} GPUs in one process (DataParallel), which "
            "cannot be tuned: start the command with torchrun, or set CUDA_VISIBLE_DEVICES"
        )
    workers = arguments.dataloader_num_workers
    default = ThroughputConfig(
        batch_size=arguments.per_device_train_batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        num_workers=workers,
        prefetch_factor=arguments.dataloader_prefetch_factor if workers else None,
        persistent_workers=bool(workers and arguments.dataloader_persistent_workers),
        pin_memory=arguments.dataloader_pin_memory,
    )
    config = autotune.load_config(
        path, default=default, effective_batch_size=default.effective_batch_size
    )
    arguments.per_device_train_batch_size = config.batch_size
    # The constructor has taken its own copy of it.
    trainer._train_batch_size = arguments.train_batch_size
    arguments.gradient_accumulation_steps = config.gradient_accumulation_steps
    arguments.dataloader_num_workers = config.num_workers
    arguments.dataloader_prefetch_factor = config.prefetch_factor
    arguments.dataloader_persistent_workers = bool(config.persistent_workers)
    arguments.dataloader_pin_memory = config.pin_memory
    if autotune.is_trial():
        _only_train(trainer)
    make_loader = trainer.get_train_dataloader

    def get_train_dataloader() -> Any:  # noqa: ANN401
        loader = make_loader()
        _set_up_collector(loader, config)
        if not autotune.is_trial():
            return loader
        return autotune.steps(loader, units=tokens if _gives_tokens(loader) else None)

    trainer.get_train_dataloader = get_train_dataloader
    return config


def tokens(batch: Any) -> Any:  # noqa: ANN401
    """Tokens in a batch that are no padding; a tensor, so that no GPU is waited for."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else mask.sum()


def _only_train(trainer: Trainer) -> None:
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy

    arguments = trainer.args
    arguments.max_steps = _ENDLESS_STEPS
    arguments.eval_strategy = IntervalStrategy.NO
    arguments.save_strategy = SaveStrategy.NO
    for name in ("eval_on_start", "load_best_model_at_end", "push_to_hub", "auto_find_batch_size"):
        setattr(arguments, name, False)
    # Batches before the one at which a training was left need not be gone through.
    arguments.ignore_data_skip = True
    for callback in list(trainer.callback_handler.callbacks):
        kind = type(callback)
        if kind.__module__.startswith("transformers.") and kind.__name__ != _FLOW_CALLBACK:
            trainer.remove_callback(kind)


def _set_up_collector(loader: Any, config: ThroughputConfig) -> None:  # noqa: ANN401
    """What `ThroughputConfig.dataloader` does for workers whose loader the trainer makes."""
    if config.num_workers and config.gc != DEFAULT:
        # A prepared loader hands the work to one that it keeps.
        made = getattr(loader, "base_dataloader", loader)
        made.worker_init_fn = CollectorInit(config.gc, made.worker_init_fn)


def _gives_tokens(loader: Any) -> bool:  # noqa: ANN401
    """Whether batches have `input_ids`, as seen from one sample."""
    dataset = loader.dataset
    sample = dataset[0] if hasattr(type(dataset), "__getitem__") else next(iter(dataset))
    batch = loader.collate_fn([sample])
    return "input_ids" in batch
