"""The directory of a run, and which checkpoint a run goes on from."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import datetime
from pathlib import Path

from mm_rec import checkpoint, run_log
from mm_rec.checkpoint import Checkpoint
from mm_rec.errors import CheckpointError, ConfigError, OutputError
from mm_rec.options import RESUME_FROM_OUTPUT_DIR, SIZES, Options

DEFAULT_PARENT = Path("runs")
# Options that decide what is learned from what; a resumed run cannot change them.
FIXED_BY_CHECKPOINT = (
    *("preset", *SIZES, "tokenizer", "vocab_size", "seq_len", "stride", "val_split"),
    *("aux_loss", "gate_chunk_len", "seed"),
)


def read_checkpoint(options: Options) -> Checkpoint | None:
    """Return the checkpoint that `--resume` names, None without that option.

    Raises:
        ConfigError: `--resume` has no path and there is no `--output-dir` either.
        CheckpointError: There is no readable checkpoint.
    """
    path = _resume_path(options)
    return None if path is None else checkpoint.load(path)


def resumed_options(options: Options, resumed: Checkpoint) -> Options:
    """Return the checkpoint's options with those given by hand on top.

    Raises:
        CheckpointError: An option given by hand would change what is being learned.
    """
    for name in FIXED_BY_CHECKPOINT:
        # The model knows the sizes that were left to the preset, too.
        found = resumed.model_config if name in SIZES else None
        before = getattr(found, name) if found else resumed.options.get(name)
        now = getattr(options, name)
        if name in options.given and now != before:
            raise CheckpointError(
                f"--{name.replace('_', '-')} {now} differs from the checkpoint's {before} and "
                "cannot change in a resumed run: leave it out, or start a new run"
            )
    merged = options.over(resumed.options)
    if "effective_batch_size" in options.given or "config" in options.given:
        return merged
    # The effective batch size is part of the recipe even where it was never named.
    return dataclasses.replace(merged, effective_batch_size=resumed.effective_batch_size)


def check_output_dir(options: Options) -> None:
    """Refuse a directory that holds another run.

    Raises:
        OutputError: It does.
    """
    directory = _named_directory(options)
    if directory is None or directory == _resumed_directory(options):
        return
    for name in (checkpoint.FILE_NAME, run_log.FILE_NAME):
        if (directory / name).exists():
            raise OutputError(
                f"--output-dir {directory} holds a run already ({name}): go on with --resume, or "
                "name another directory"
            )


def make_output_dir(options: Options) -> Path:
    """Create and return the directory of the run.

    Raises:
        OutputError: It cannot be created.
    """
    directory = _named_directory(options)
    if directory is None:
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{options.preset}"
        names = itertools.chain((name,), (f"{name}-{n}" for n in itertools.count(2)))
        directory = next(path for path in map(DEFAULT_PARENT.joinpath, names) if not path.exists())
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create the output directory {directory}: {error.strerror}; name another "
            "with --output-dir"
        ) from error
    return directory


def _resume_path(options: Options) -> Path | None:
    if options.resume != RESUME_FROM_OUTPUT_DIR:
        return None if options.resume is None else Path(options.resume)
    if options.output_dir is None:
        raise ConfigError("--resume needs a path, or --output-dir to find the checkpoint in")
    return Path(options.output_dir)


def _resumed_directory(options: Options) -> Path | None:
    path = _resume_path(options)
    if path is None:
        return None
    return (path if path.is_dir() else path.parent).resolve()


def _named_directory(options: Options) -> Path | None:
    """Return the directory that was asked for; a resumed run stays where it was."""
    if options.output_dir is None:
        return _resumed_directory(options)
    directory = Path(options.output_dir).resolve()
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"--output-dir {options.output_dir} is not a directory")
    return directory
