"""Train an MM-Rec language model: `python -m mm_rec.train`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import autotune
from mm_rec import data, output, throughput
from mm_rec.checkpoint import Checkpoint, Position
from mm_rec.config import AUX_LOSS_WEIGHT, PRESETS, ModelConfig
from mm_rec.data.prepare import TokenizeMode, TokenizerKind
from mm_rec.errors import CheckpointError, DataError, MmRecError
from mm_rec.interruption import Interruption, outlive_signals
from mm_rec.model import MMRec
from mm_rec.options import Options, parse
from mm_rec.schedule import Schedule, default_warmup_steps
from mm_rec.session import RunPlan, Session
from mm_rec.training import Trainer, make_optimizer, train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 for bad input, 130 after Ctrl-C or 143 after SIGTERM."""
    try:
        return run(parse(argv))
    except (MmRecError, autotune.AutotuneError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: only what the last checkpoint holds is kept", file=sys.stderr)
        return 130


def run(options: Options) -> int:
    """Train as the options say and return the exit code.

    Raises:
        MmRecError: The options, the data, a checkpoint or the output cannot be used.
        autotune.AutotuneError: The throughput settings cannot be used.
    """
    resumed = output.read_checkpoint(options)
    if resumed is not None:
        options = output.resumed_options(options, resumed)
    if not autotune.is_trial():
        output.check_output_dir(options)
    torch.manual_seed(options.seed)
    build = _build(options, resumed)
    # Nothing before this starts a thread and all of it is costly: the processes that autotune
    # measures are forked in here.
    config = throughput.resolve(options)
    if resumed is not None and config.effective_batch_size != resumed.effective_batch_size:
        raise CheckpointError(
            f"the effective batch size {config.effective_batch_size} differs from the "
            f"checkpoint's {resumed.effective_batch_size} and cannot change in a resumed run"
        )
    if autotune.is_trial():
        return _measure(options, build, config)
    return _train_and_record(options, build, config)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Build:
    """What exists before the throughput settings are known."""

    prepared: data.PreparedData
    windows: data.WindowDataset
    validation: data.WindowDataset | None
    model: MMRec
    optimizer: torch.optim.Optimizer
    position: Position


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Loop:
    """What depends on the throughput settings."""

    order: data.WindowOrder
    loader: DataLoader[Tensor]
    trainer: Trainer
    total_steps: int


def _build(options: Options, resumed: Checkpoint | None) -> _Build:
    prepared = data.prepare(
        data.read_corpus([Path(path) for path in options.data], text_field=options.text_field),
        tokenizer_kind=cast("TokenizerKind", options.tokenizer),
        vocab_size=PRESETS[options.preset].vocab_size,
        val_split=options.val_split,
        mode=cast("TokenizeMode", options.tokenize),
        cache_dir=Path(options.cache_dir) if options.cache_dir else None,
    )
    if resumed is not None and resumed.data_key != prepared.key:
        raise CheckpointError(
            "the checkpoint was trained on other data (content, split or tokenizer differ): "
            "give the same --data"
        )
    model = MMRec(_model_config(options, prepared.tokenizer))
    optimizer = make_optimizer(model, weight_decay=options.weight_decay)
    if resumed is not None:
        resumed.restore(model, optimizer)
    return _Build(
        prepared=prepared,
        windows=data.WindowDataset(prepared.train, seq_len=options.seq_len, stride=options.stride),
        validation=_validation_windows(options, prepared),
        model=model,
        optimizer=optimizer,
        position=Position() if resumed is None else resumed.position,
    )


def _model_config(options: Options, tokenizer: data.Tokenizer) -> ModelConfig:
    return dataclasses.replace(
        PRESETS[options.preset],
        vocab_size=tokenizer.vocab_size,
        dropout=options.dropout,
        aux_loss_weight=AUX_LOSS_WEIGHT if options.aux_loss else 0.0,
    )


def _validation_windows(options: Options, prepared: data.PreparedData) -> data.WindowDataset | None:
    if prepared.validation is None:
        return None
    try:
        return data.WindowDataset(prepared.validation, seq_len=options.seq_len)
    except DataError:
        # Training is possible all the same; the opening lines say that nothing is held out.
        return None


def _make_loop(options: Options, build: _Build, config: autotune.ThroughputConfig) -> _Loop:
    effective = config.effective_batch_size
    order = data.WindowOrder(len(build.windows), effective_batch_size=effective, seed=options.seed)
    # Its own generator: a loader draws a seed for its workers at every epoch, and drawn from the
    # global generator that would change the dropout of a resumed run.
    kwargs: dict[str, Any] = {"generator": torch.Generator().manual_seed(options.seed)}
    if not autotune.is_trial():
        kwargs["worker_init_fn"] = outlive_signals
    if options.stream:
        stream = data.StreamedWindows(build.windows, order, block_size=config.batch_size)
        loader = config.dataloader(stream, **kwargs)
    else:
        loader = config.dataloader(build.windows, sampler=order, **kwargs)
    total_steps = options.epochs * (order.samples_per_epoch // effective)
    if options.max_steps is not None:
        total_steps = min(total_steps, options.max_steps)
    warmup_steps = options.warmup_steps
    if warmup_steps is None:
        warmup_steps = default_warmup_steps(total_steps)
    schedule = Schedule(peak_lr=options.lr, warmup_steps=warmup_steps, total_steps=total_steps)
    trainer = Trainer(
        build.model,
        build.optimizer,
        schedule,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        step=build.position.step,
    )
    return _Loop(order=order, loader=loader, trainer=trainer, total_steps=total_steps)


def _measure(options: Options, build: _Build, config: autotune.ThroughputConfig) -> int:
    """Train for autotune, which ends this process when it has seen enough; write nothing."""
    loop = _make_loop(options, build, config)
    train(
        loop.trainer,
        loop.loader,
        loop.order,
        position=build.position,
        epochs=build.position.epoch + 1,
        effective_batch_size=config.effective_batch_size,
        after_step=lambda _: False,
    )
    return 0


def _train_and_record(options: Options, build: _Build, config: autotune.ThroughputConfig) -> int:
    loop = _make_loop(options, build, config)
    _print_opening(options, build, config, loop)
    if build.position.step >= loop.total_steps:
        print(
            f"nothing to do: the checkpoint has all {loop.total_steps} steps; "
            "raise --max-steps or --epochs to go on"
        )
        return 0
    plan = RunPlan(
        total_steps=loop.total_steps,
        samples_per_step=config.effective_batch_size,
        tokens_per_step=config.effective_batch_size * options.seq_len,
        unit=build.prepared.tokenizer.unit,
        directory=output.make_output_dir(options),
    )
    with Interruption() as interruption:
        session = Session(
            plan,
            options,
            loop.trainer,
            validation=build.validation,
            snapshot=lambda position: _snapshot(options, build, config, position),
            interruption=interruption,
            position=build.position,
        )
        position = train(
            loop.trainer,
            loop.loader,
            loop.order,
            position=build.position,
            epochs=options.epochs,
            effective_batch_size=config.effective_batch_size,
            after_step=session.after_step,
        )
        session.finish(position)
    return interruption.exit_code


def _snapshot(
    options: Options, build: _Build, config: autotune.ThroughputConfig, position: Position
) -> Checkpoint:
    tokenizer = build.prepared.tokenizer
    return Checkpoint(
        position=position,
        options=options.to_dict(),
        data_key=build.prepared.key,
        effective_batch_size=config.effective_batch_size,
        model=build.model.state_dict(),
        optimizer=build.optimizer.state_dict(),
        rng_state=torch.get_rng_state(),
        tokenizer={
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "characters": tokenizer.characters,
        },
    )


def _print_opening(
    options: Options, build: _Build, config: autotune.ThroughputConfig, loop: _Loop
) -> None:
    held_out = "nothing" if build.validation is None else f"{len(build.validation):,} samples"
    print(
        f"model: {options.preset}, {build.model.num_parameters():,} parameters; data: "
        f"{len(build.prepared.train):,} {build.prepared.tokenizer.unit}s, "
        f"{len(build.windows):,} samples of {options.seq_len}, {held_out} held out"
    )
    print(f"{throughput.describe(config)}; {loop.total_steps:,} optimizer steps", flush=True)


if __name__ == "__main__":
    sys.exit(main())
