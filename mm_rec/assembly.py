"""The parts of a training run, built from the options."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import autotune
from mm_rec import data
from mm_rec.checkpoint import Checkpoint, Position
from mm_rec.config import AUX_LOSS_WEIGHT, PRESETS, ModelConfig
from mm_rec.data.prepare import TokenizeMode
from mm_rec.data.vocabulary import TokenizerKind
from mm_rec.errors import CheckpointError, ConfigError, DataError
from mm_rec.interruption import outlive_signals
from mm_rec.model import MMRec
from mm_rec.options import SIZES, Options
from mm_rec.schedule import Schedule, default_warmup_steps
from mm_rec.training import Trainer, make_optimizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What exists before the throughput settings are known."""

    prepared: data.PreparedData
    windows: data.WindowDataset
    validation: data.WindowDataset | None
    model: MMRec
    optimizer: torch.optim.Optimizer
    position: Position


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loop:
    """What depends on the throughput settings."""

    order: data.WindowOrder
    loader: DataLoader[Tensor]
    trainer: Trainer
    total_steps: int


def build_parts(options: Options, resumed: Checkpoint | None) -> Parts:
    """Read the data and make model and optimizer, as the checkpoint left them if there is one.

    Raises:
        MmRecError: The data or the checkpoint cannot be used.
    """
    # First, since reading a corpus may take long: the sizes may not fit each other.
    sizes = _model_config(options)
    prepared = data.prepare(
        data.read_corpus([Path(path) for path in options.data], text_field=options.text_field),
        tokenizer_kind=cast("TokenizerKind", options.tokenizer),
        vocab_size=sizes.vocab_size,
        val_split=options.val_split,
        mode=cast("TokenizeMode", options.tokenize),
        cache_dir=Path(options.cache_dir) if options.cache_dir else None,
        show_progress=not autotune.is_trial(),
    )
    # The key tells everything but the version of the library that has learned byte pairs.
    if resumed is not None and (
        resumed.data_key != prepared.key or resumed.tokenizer != prepared.tokenizer.to_dict()
    ):
        raise CheckpointError(
            "the checkpoint was trained on other data (content, split or tokenizer differ): "
            "give the same --data"
        )
    model = MMRec(dataclasses.replace(sizes, vocab_size=prepared.tokenizer.vocab_size))
    optimizer = make_optimizer(model, weight_decay=options.weight_decay)
    if resumed is not None:
        resumed.restore(model, optimizer)
    return Parts(
        prepared=prepared,
        windows=data.WindowDataset(prepared.train, seq_len=options.seq_len, stride=options.stride),
        validation=_validation_windows(options, prepared),
        model=model,
        optimizer=optimizer,
        position=Position() if resumed is None else resumed.position,
    )


def _model_config(options: Options) -> ModelConfig:
    """Return the configuration that is asked for, with room for the largest vocabulary."""
    named = {name: getattr(options, name) for name in (*SIZES, "vocab_size")}
    return dataclasses.replace(
        PRESETS[options.preset],
        **{name: value for name, value in named.items() if value is not None},
        dropout=options.dropout,
        aux_loss_weight=AUX_LOSS_WEIGHT if options.aux_loss else 0.0,
        gate_chunk_len=options.gate_chunk_len,
    )


def _validation_windows(options: Options, prepared: data.PreparedData) -> data.WindowDataset | None:
    if prepared.validation is None:
        return None
    try:
        return data.WindowDataset(prepared.validation, seq_len=options.seq_len)
    except DataError:
        # Training is possible all the same; the opening lines say that nothing is held out.
        return None


def make_loop(options: Options, parts: Parts, config: autotune.ThroughputConfig) -> Loop:
    """Make what the loop needs under the given settings.

    Raises:
        MmRecError: The data are too short for one optimizer step, or the schedule is impossible.
    """
    _move(parts, options.device)
    effective = config.effective_batch_size
    order = data.WindowOrder(len(parts.windows), effective_batch_size=effective, seed=options.seed)
    # Its own generator: a loader draws a seed for its workers at every epoch, and drawn from the
    # global generator that would change the dropout of a resumed run.
    kwargs: dict[str, Any] = {"generator": torch.Generator().manual_seed(options.seed)}
    if not autotune.is_trial():
        kwargs["worker_init_fn"] = outlive_signals
    if options.stream:
        stream = data.StreamedWindows(parts.windows, order, block_size=config.batch_size)
        loader = config.dataloader(stream, **kwargs)
    else:
        loader = config.dataloader(parts.windows, sampler=order, **kwargs)
    total_steps = options.epochs * (order.samples_per_epoch // effective)
    if options.max_steps is not None:
        total_steps = min(total_steps, options.max_steps)
    warmup_steps = options.warmup_steps
    if warmup_steps is None:
        warmup_steps = default_warmup_steps(total_steps)
    schedule = Schedule(peak_lr=options.lr, warmup_steps=warmup_steps, total_steps=total_steps)
    trainer = Trainer(
        parts.model,
        parts.optimizer,
        schedule,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        bptt_len=options.bptt_len,
        low_precision=options.bf16,
        step=parts.position.step,
    )
    return Loop(order=order, loader=loader, trainer=trainer, total_steps=total_steps)


def _move(parts: Parts, device: str) -> None:
    """Move model and optimizer, here and not when they are made: CUDA must not come before a fork.

    Raises:
        ConfigError: There is no such device.
    """
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: torch finds no such device here; leave it out")
    parts.model.to(device)
    # Loading a state moves it to where its parameters are.
    parts.optimizer.load_state_dict(parts.optimizer.state_dict())
