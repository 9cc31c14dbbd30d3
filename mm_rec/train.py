"""Train an MM-Rec language model: `python -m mm_rec.train`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch

import autotune
from mm_rec import kernel, output, throughput
from mm_rec.assembly import Loop, Parts, build_parts, make_loop
from mm_rec.checkpoint import Checkpoint, Position
from mm_rec.errors import CheckpointError, MmRecError
from mm_rec.footprint import Footprint, estimate
from mm_rec.interruption import Interruption
from mm_rec.options import SIZES, Options, parse
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
    if options.dry_run:
        return 0
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
        validation_bytes_per_token=parts.prepared.validation_bytes_per_token,
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
    return Checkpoint(
        position=position,
        options=options.to_dict(),
        data_key=parts.prepared.key,
        effective_batch_size=config.effective_batch_size,
        model_config=parts.model.config,
        model=parts.model.state_dict(),
        optimizer=parts.optimizer.state_dict(),
        rng_state=torch.get_rng_state(),
        tokenizer=parts.prepared.tokenizer.to_dict(),
    )


def _print_opening(
    options: Options, parts: Parts, config: autotune.ThroughputConfig, loop: Loop
) -> None:
    held_out = "nothing" if parts.validation is None else f"{len(parts.validation):,} samples"
    print(
        f"model: {_model_name(options)}, {parts.model.num_parameters():,} parameters; data: "
        f"{len(parts.prepared.train):,} {parts.prepared.tokenizer.unit}s, "
        f"{len(parts.windows):,} samples of {options.seq_len}, {held_out} held out"
    )
    print(f"{throughput.describe(config)}; {loop.total_steps:,} optimizer steps", flush=True)
    if options.device == "cpu":
        memory = _footprint(options, parts, config)
        print(f"memory: Python and torch, and about {memory}", flush=True)
    for note in _notes(options):
        print(f"note: {note}", flush=True)


def _footprint(options: Options, parts: Parts, config: autotune.ThroughputConfig) -> Footprint:
    return estimate(
        parts.model.config,
        num_parameters=parts.model.num_parameters(),
        batch_size=config.batch_size,
        seq_len=options.seq_len,
        bptt_len=options.bptt_len,
        low_precision=options.bf16,
    )


def _model_name(options: Options) -> str:
    """Return the preset, and what was given in place of its sizes."""
    sizes = {name: getattr(options, name) for name in SIZES}
    changed = (f" {name}={value}" for name, value in sizes.items() if value is not None)
    return options.preset + "".join(changed)


def _notes(options: Options) -> Iterator[str]:
    """Yield what makes this machine slower than it could be, or the model another one."""
    if options.device == "cpu" and kernel.load(torch.float32) is None:
        yield (
            "the recurrence is not compiled, since no C compiler works here ($CC, cc, gcc or "
            "clang); with one, training is faster"
        )
    if (
        options.device == "cpu"
        and options.bf16
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        yield "this processor has no bfloat16 instructions, so --bf16 makes training slower"
    if options.gate_chunk_len > 1:
        yield f"gates frozen for {options.gate_chunk_len} tokens: not the exact recurrence"


if __name__ == "__main__":
    sys.exit(main())
