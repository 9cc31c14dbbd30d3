"""Train an MM-Rec language model: `python -m mm_rec.train`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import autotune
from mm_rec import data, kernel, output, throughput
from mm_rec.checkpoint import Checkpoint, Position
from mm_rec.config import AUX_LOSS_WEIGHT, PRESETS, ModelConfig
from mm_rec.data.prepare import TokenizeMode, TokenizerKind
from mm_rec.errors import CheckpointError, ConfigError, MmRecError
from mm_rec.interruption import Interruption, outlive_signals
from mm_rec.model import MMRec
from mm_rec.options import SIZES, Options, parse
from mm_rec.session import RunPlan, Session
from mm_rec.training import Schedule, Trainer, default_warmup_steps, make_optimizer, train


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
    parts = _build_parts(options, resumed)
    # Nothing before this starts a thread and all of it is costly: the processes that autotune
    # measures are forked in here.
    config = throughput.resolve(options)
    if resumed is not None and config.effective_batch_size != resumed.effective_batch_size:
        raise CheckpointError(
            f"the effective batch size {config.effective_batch_size} differs from the "
            f"checkpoint's {resumed.effective_batch_size} and cannot change in a resumed run"
        )
    loop = _make_loop(options, parts, config)
    if autotune.is_trial():
        # autotune ends this process when it has seen enough; nothing is written.
        loop.train(parts.position, epochs=parts.position.epoch + 1, after_step=lambda _: False)
        return 0
    return _train_and_record(options, parts, loop)


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

    config: autotune.ThroughputConfig
    order: data.WindowOrder
    loader: DataLoader[Tensor]
    trainer: Trainer
    total_steps: int

    def train(self, position: Position, *, epochs: int, after_step: Any) -> Position:  # noqa: ANN401
        """See `training.train`."""
        return train(
            self.trainer,
            self.loader,
            self.order,
            position=position,
            epochs=epochs,
            effective_batch_size=self.config.effective_batch_size,
            after_step=after_step,
        )


def _build_parts(options: Options, resumed: Checkpoint | None) -> Parts:
    """Read the data and make model and optimizer, as the checkpoint left them if there is one."""
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
    windows = data.WindowDataset(prepared.train, seq_len=options.seq_len, stride=options.stride)
    validation = None
    if prepared.validation is not None and len(prepared.validation) > options.seq_len:
        validation = data.WindowDataset(prepared.validation, seq_len=options.seq_len)
    model = MMRec(dataclasses.replace(sizes, vocab_size=prepared.tokenizer.vocab_size))
    optimizer = make_optimizer(model, weight_decay=options.weight_decay)
    if resumed is not None:
        resumed.restore(model, optimizer)
    return Parts(
        prepared=prepared,
        windows=windows,
        validation=validation,
        model=model,
        optimizer=optimizer,
        position=Position() if resumed is None else resumed.position,
    )


def _model_config(options: Options) -> ModelConfig:
    """The configuration that is asked for, with room for the largest vocabulary."""
    named = {name: getattr(options, name) for name in (*SIZES, "vocab_size")}
    return dataclasses.replace(
        PRESETS[options.preset],
        **{name: value for name, value in named.items() if value is not None},
        dropout=options.dropout,
        aux_loss_weight=AUX_LOSS_WEIGHT if options.aux_loss else 0.0,
        gate_chunk_len=options.gate_chunk_len,
    )


def _make_loop(options: Options, parts: Parts, config: autotune.ThroughputConfig) -> Loop:
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
    trainer = Trainer(
        parts.model,
        parts.optimizer,
        Schedule(peak_lr=options.lr, warmup_steps=warmup_steps, total_steps=total_steps),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        bptt_len=options.bptt_len,
        low_precision=options.bf16,
        step=parts.position.step,
    )
    return Loop(config=config, order=order, loader=loader, trainer=trainer, total_steps=total_steps)


def _move(parts: Parts, device: str) -> None:
    """Move model and optimizer; not when they are made, since CUDA must not come before a fork."""
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: torch finds no such device here; leave it out")
    parts.model.to(device)
    # Loading a state moves it to where its parameters are.
    parts.optimizer.load_state_dict(parts.optimizer.state_dict())


def _train_and_record(options: Options, parts: Parts, loop: Loop) -> int:
    _print_opening(options, parts, loop)
    if options.dry_run:
        return 0
    if parts.position.step >= loop.total_steps:
        print(
            f"nothing to do: the checkpoint has all {loop.total_steps} steps; "
            "raise --max-steps or --epochs to go on"
        )
        return 0
    effective = loop.config.effective_batch_size
    plan = RunPlan(
        total_steps=loop.total_steps,
        samples_per_step=effective,
        tokens_per_step=effective * options.seq_len,
        validation_bytes_per_token=parts.prepared.validation_bytes_per_token,
        directory=output.make_output_dir(options),
    )

    def snapshot(position: Position) -> Checkpoint:
        return Checkpoint(
            position=position,
            options=options.to_dict(),
            data_key=parts.prepared.key,
            effective_batch_size=effective,
            model_config=parts.model.config,
            model=parts.model.state_dict(),
            optimizer=parts.optimizer.state_dict(),
            rng_state=torch.get_rng_state(),
            tokenizer=parts.prepared.tokenizer.to_dict(),
        )

    with Interruption() as interruption:
        session = Session(
            plan,
            options,
            loop.trainer,
            validation=parts.validation,
            snapshot=snapshot,
            interruption=interruption,
            position=parts.position,
        )
        position = loop.train(parts.position, epochs=options.epochs, after_step=session.after_step)
        session.finish(position)
    return interruption.exit_code


def _print_opening(options: Options, parts: Parts, loop: Loop) -> None:
    held_out = "nothing" if parts.validation is None else f"{len(parts.validation):,} samples"
    # The preset, and what was given in place of its sizes.
    sizes = {name: getattr(options, name) for name in SIZES}
    changed = (f" {name}={value}" for name, value in sizes.items() if value is not None)
    print(
        f"model: {options.preset}{''.join(changed)}, {parts.model.num_parameters():,} parameters; "
        f"data: {len(parts.prepared.train):,} {parts.prepared.tokenizer.unit}s, "
        f"{len(parts.windows):,} samples of {options.seq_len}, {held_out} held out"
    )
    print(f"{throughput.describe(loop.config)}; {loop.total_steps:,} optimizer steps", flush=True)
    for note in _notes(options):
        print(f"note: {note}", flush=True)


def _notes(options: Options) -> Iterator[str]:
    """What makes this machine slower than it could be, or the model another one."""
    on_cpu = options.device == "cpu"
    if on_cpu and kernel.load(torch.float32) is None:
        yield (
            "the recurrence is not compiled, since no C compiler works here ($CC, cc, gcc or "
            "clang); with one, training is faster"
        )
    if on_cpu and options.bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        yield "this processor has no bfloat16 instructions, so --bf16 makes training slower"
    if options.gate_chunk_len > 1:
        yield f"gates frozen for {options.gate_chunk_len} tokens: not the exact recurrence"


if __name__ == "__main__":
    sys.exit(main())
