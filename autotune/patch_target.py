"""What `--patch` tunes in a script that does not call autotune."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autotune.errors import BadInputError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PatchTarget:
    """The loader that feeds the training of an untouched script, or the framework that owns it.

    Attributes:
        place: For people: "train.py:34", or the framework's class.
        framework: The module in `autotune.integrations` that tunes it; None for a DataLoader.
        calls: The calls that made the DataLoader, innermost first: file, function and source.
            Lines that are added elsewhere in the script do not change them.
        ordinal: Which of the DataLoaders that these calls make, from 0; None for all of them.
        num_made: How many these had made when the training began. Where a script trains again, with
            other data, they make as many again.
        first_pass: The pass over it in which the training begins, from 0: a script may look at some
            batches before.
        has_optimizer: Whether optimizers of torch take steps in the training.
        tunes_batch_size: Whether its batch size is tuned, too.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    place: str
    framework: str | None = None
    calls: tuple[str, ...] = ()
    ordinal: int | None = None
    num_made: int = 1
    first_pass: int = 0
    has_optimizer: bool = True
    tunes_batch_size: bool = False

    def __post_init__(self) -> None:
        if self.num_made < 1:
            raise BadInputError(f"num_made: must be at least 1, not {self.num_made}")

    def __str__(self) -> str:
        if self.framework is not None:
            return f"the training of {self.place}"
        which = "" if self.ordinal is None else f" (number {self.ordinal + 1} of several)"
        return f"the DataLoader made at {self.place}{which}"


def target_of(data: Mapping[str, Any]) -> PatchTarget:
    """The target in a message, where tuples have become lists."""
    return PatchTarget(**{**data, "calls": tuple(data["calls"])})
