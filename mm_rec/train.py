"""Train an MM-Rec language model: `python -m mm_rec.train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

import autotune
from mm_rec import output, throughput
from mm_rec.assembly import Loop, Parts, build_parts, make_loop
from mm_rec.checkpoint import Checkpoint, Position
from mm_rec.errors import CheckpointError, MmRecError
from mm_rec.interruption import Interruption
from mm_rec.options import Options, parse
from mm_rec.session import RunPlan, Session
from mm_rec.training import train


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
    parts = build_parts(options, resumed)
    # Nothing before this starts a thread and all of it is costly: the processes that autotune
    # measures are forked in here.
    config = throughput.resolve(options)
    if resumed is not None and config.effective_batch_size != resumed.effective_batch_size:
        raise CheckpointError(
            f"the effective batch size {config.effective_batch_size} differs from the "
            f"checkpoint's {resumed.effective_batch_size} and cannot change in a resumed run"
        )
    if autotune.is_trial():
        return _measure(options, parts, config)
    return _train_and_record(options, parts, config)


def _measure(options: Options, parts: Parts, config: autotune.ThroughputConfig) -> int:
    """Train for autotune, which ends this process when it has seen enough; write nothing."""
    loop = make_loop(options, parts, config)
    train(
        loop.trainer,
        loop.loader,
        loop.order,
        position=parts.position,
        epochs=parts.position.epoch + 1,
        effective_batch_size=config.effective_batch_size,
        after_step=lambda _: False,
    )
    return 0


def _train_and_record(options: Options, parts: Parts, config: autotune.ThroughputConfig) -> int:
    loop = make_loop(options, parts, config)
    _print_opening(options, parts, config, loop)
    if parts.position.step >= loop.total_steps:
        print(
            f"nothing to do: the checkpoint has all {loop.total_steps} steps; "
            "raise --max-steps or --epochs to go on"
        )
        return 0
    plan = RunPlan(
        total_steps=loop.total_steps,
        samples_per_step=config.effective_batch_size,
        tokens_per_step=config.effective_batch_size * options.seq_len,
        unit=parts.prepared.tokenizer.unit,
        directory=output.make_output_dir(options),
    )
    with Interruption() as interruption:
        session = Session(
            plan,
            options,
            loop.trainer,
            validation=parts.validation,
            snapshot=lambda position: _snapshot(options, parts, config, position),
            interruption=interruption,
            position=parts.position,
        )
        position = train(
            loop.trainer,
            loop.loader,
            loop.order,
            position=parts.position,
            epochs=options.epochs,
            effective_batch_size=config.effective_batch_size,
            after_step=session.after_step,
        )
        session.finish(position)
    return interruption.exit_code


def _snapshot(
    options: Options, parts: Parts, config: autotune.ThroughputConfig, position: Position
) -> Checkpoint:
    tokenizer = parts.prepared.tokenizer
    return Checkpoint(
        position=position,
        options=options.to_dict(),
        data_key=parts.prepared.key,
        effective_batch_size=config.effective_batch_size,
        model=parts.model.state_dict(),
        optimizer=parts.optimizer.state_dict(),
        rng_state=torch.get_rng_state(),
        tokenizer={
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "characters": tokenizer.characters,
        },
    )


def _print_opening(
    options: Options, parts: Parts, config: autotune.ThroughputConfig, loop: Loop
) -> None:
    held_out = "nothing" if parts.validation is None else f"{len(parts.validation):,} samples"
    print(
        f"model: {options.preset}, {parts.model.num_parameters():,} parameters; data: "
        f"{len(parts.prepared.train):,} {parts.prepared.tokenizer.unit}s, "
        f"{len(parts.windows):,} samples of {options.seq_len}, {held_out} held out"
    )
    print(f"{throughput.describe(config)}; {loop.total_steps:,} optimizer steps", flush=True)


if __name__ == "__main__":
    sys.exit(main())
