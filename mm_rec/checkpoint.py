"""Checkpoints: everything that training needs to go on exactly where it was.

They are enough to rebuild the model as well: neither the presets nor the data are needed for it.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm_rec.config import ModelConfig
from mm_rec.data.tokenizers import Tokenizer, tokenizer_from_dict
from mm_rec.errors import CheckpointError, ConfigError, OutputError
from mm_rec.model import MMRec

FORMAT = 3
FILE_NAME = "checkpoint.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where training stands.

    Attributes:
        step: Optimizer steps done.
        epoch: Passes over the data done.
        sample: Samples of the current pass that are done.
    """

    step: int = 0
    epoch: int = 0
    sample: int = 0

    def after_step(self, num_samples: int) -> Position:
        """Return the position one optimizer step of `num_samples` later."""
        return Position(step=self.step + 1, epoch=self.epoch, sample=self.sample + num_samples)

    def next_epoch(self) -> Position:
        """Return the position at the start of the next pass."""
        return Position(step=self.step, epoch=self.epoch + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        position: Where training stood.
        options: The options of the run, as plain values.
        data_key: Names the data, split and tokenizer.
        effective_batch_size: Samples per optimizer step.
        model_config: Sizes and rates of the model.
        model: State of the model.
        optimizer: State of the optimizer.
        rng_state: State of torch's random numbers.
        tokenizer: Plain values for `tokenizer_from_dict`, to read the model's output with.
    """

    position: Position
    options: dict[str, Any]
    data_key: str
    effective_batch_size: int
    model_config: ModelConfig
    model: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    rng_state: Tensor
    tokenizer: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file whole or not at all, replacing the one before.

        Raises:
            OutputError: The file cannot be written.
        """
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content |= {
            "format": FORMAT,
            "position": dataclasses.asdict(self.position),
            "model_config": dataclasses.asdict(self.model_config),
            "model": dict(self.model),
        }
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
            try:
                with os.fdopen(handle, "wb") as file:
                    torch.save(content, file)
                    file.flush()
                    # Without it a power cut could leave the new name on an empty file.
                    os.fsync(file.fileno())
                Path(name).replace(path)
            finally:
                Path(name).unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError.
            raise OutputError(f"cannot write the checkpoint {path}: {error}") from error

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put model, optimizer and random numbers where they were.

        The weight decay stays as it is set in `optimizer`: like the schedule it is an option.

        Raises:
            CheckpointError: The states do not fit the model or the optimizer.
        """
        weight_decays = [group["weight_decay"] for group in optimizer.param_groups]
        try:
            model.load_state_dict(self.model)
            optimizer.load_state_dict(self.optimizer)
            for group, weight_decay in zip(optimizer.param_groups, weight_decays, strict=True):
                group["weight_decay"] = weight_decay
            torch.set_rng_state(self.rng_state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this model ({_kind(error)})"
            ) from error


def load(path: Path, *, mmap: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: A file, or the directory of a run.
        mmap: Map tensors into memory, and read those alone that are used.

    Raises:
        CheckpointError: There is none, or it is not one of this format.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(
            f"{path}: there is no checkpoint; name its file, or the directory of a run with a "
            f"{FILE_NAME} in it"
        )
    try:
        # torch.load would say the same at length, or read an older format.
        if not zipfile.is_zipfile(file):
            raise CheckpointError(
                f"{file} is not a readable checkpoint: it is damaged, or another kind of file"
            )
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        if (found := content.pop("format")) != FORMAT:
            raise CheckpointError(
                f"{file} has the checkpoint format {found}, this version reads {FORMAT}: train "
                "anew or use the version that wrote it"
            )
        content["position"] = Position(**content["position"])
        content["model_config"] = ModelConfig(**content["model_config"])
        return Checkpoint(**content)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file} is not a readable checkpoint ({_kind(error)})") from error
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{file} is not a checkpoint of mm_rec ({_kind(error)})") from error


def load_model(path: str | os.PathLike[str]) -> tuple[MMRec, Tokenizer]:
    """Return the model of a checkpoint, ready for inference, and the tokenizer of its text.

    Args:
        path: A checkpoint, or the directory of a run.

    Raises:
        CheckpointError: There is no checkpoint, or it is not one of this format.
    """
    # Mapped: the state of the optimizer, twice the size of the model, is never read.
    stored = load(Path(path), mmap=True)
    with torch.device("meta"):
        model = MMRec(stored.model_config)
    try:
        # Copied: the file may be written over while the model lives.
        weights = {name: value.clone() for name, value in stored.model.items()}
        model.load_state_dict(weights, assign=True)
        return model.eval(), tokenizer_from_dict(stored.tokenizer)
    except (RuntimeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path} is not a usable checkpoint ({_kind(error)})") from error


def _kind(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
