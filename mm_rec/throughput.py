"""The settings that decide the speed: tuned ones from a file, flags given by hand on top."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import autotune
from mm_rec.errors import ConfigError
from mm_rec.options import Options

FLAGS = ("batch_size", "num_workers", "prefetch_factor", "num_threads")


def resolve(options: Options) -> autotune.ThroughputConfig:
    """Return the settings to train with, their thread counts applied.

    Data, model and optimizer should exist by now: a process that autotune measures is forked in
    here.

    Raises:
        ConfigError: The file is missing, or the flags do not fit it.
        autotune.AutotuneError: The file or a setting breaks a rule of autotune.
    """
    if autotune.is_trial() or options.config is None:
        default = autotune.ThroughputConfig(
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            prefetch_factor=options.prefetch_factor,
            num_threads=options.num_threads,
        )
        return autotune.load_config(
            None, default=default, effective_batch_size=options.effective_batch_size
        )
    path = Path(options.config)
    if not path.is_file():
        raise ConfigError(
            f"--config {path} does not exist or is not a file: tune first, or leave it out"
        )
    overrides = {name: getattr(options, name) for name in FLAGS if name in options.given}
    # A batch size given by hand is checked against the effective one below, in place of the
    # file's, which may not divide it.
    expected = None if "batch_size" in overrides else options.effective_batch_size
    tuned = _load(path, effective_batch_size=expected)
    return _override(tuned, overrides, options) if overrides else tuned


def describe(config: autotune.ThroughputConfig) -> str:
    """Return the settings in one line."""
    loading = f"{config.num_workers} workers"
    if config.num_workers:
        loading += f" (prefetch {config.prefetch_factor} each)"
    threads = str(torch.get_num_threads())
    if config.num_threads is None:
        threads += " (torch's default)"
    return (
        f"settings: batch {config.batch_size} x accumulation "
        f"{config.gradient_accumulation_steps} = {config.effective_batch_size} samples per "
        f"optimizer step, {loading}, threads: {threads}"
    )


def _load(path: Path, *, effective_batch_size: int | None) -> autotune.ThroughputConfig:
    # The file is there, so the default is never used; 1 divides every effective batch size.
    default = autotune.ThroughputConfig(batch_size=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", autotune.StaleSettingsWarning)
        config = autotune.load_config(
            path, default=default, effective_batch_size=effective_batch_size
        )
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return config


def _override(
    tuned: autotune.ThroughputConfig, overrides: dict[str, Any], options: Options
) -> autotune.ThroughputConfig:
    effective = options.effective_batch_size or tuned.effective_batch_size
    changes = dict(overrides)
    if "num_workers" in overrides:
        # What the file says about its workers does not hold for another number of them.
        changes["persistent_workers"] = None
        if not overrides["num_workers"]:
            tuned = tuned.without_workers()
    batch_size = changes.get("batch_size", tuned.batch_size)
    if effective % batch_size:
        raise ConfigError(
            f"--batch-size {batch_size} does not divide the effective batch size {effective} of "
            f"{options.config}: give a divisor, or --effective-batch-size as well"
        )
    changes["gradient_accumulation_steps"] = effective // batch_size
    config = dataclasses.replace(tuned, **changes)
    if "num_threads" in overrides:
        dataclasses.replace(config, num_interop_threads=None).apply_to_process()
    flags = ", ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in sorted(overrides.items())
    )
    print(f"given on the command line, in place of {options.config}: {flags}")
    return config
